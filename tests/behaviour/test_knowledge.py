"""What a model knows, of queries and of any function of it."""

import math

import pandas as pd

from interp import Query
from interp.behaviour.knowledge import measure_knowledge
from interp.behaviour.probing import compute_accuracy, probe
from interp.statistics import Estimate
from tests.helpers.tiny_models import tiny

QUERIES = [
    Query(id=f"q{number}", language=code, prompt=f"w{number} w8", answer=f"w{number}", concept="c")
    for code in ("en", "de")
    for number in (5, 6, 7)
]


def test_of_queries_it_is_the_probing_accuracy():
    model = tiny()
    expected = compute_accuracy(probe(model, QUERIES, progress=False))
    assert list(expected["num_queries"]) == [3, 3]
    pd.testing.assert_frame_equal(measure_knowledge(model, QUERIES), expected)


def test_of_a_function_it_is_a_row_per_name():
    model = tiny()
    interval = Estimate(value=0.5, ci_low=0.2, ci_high=0.8, n=9, reason="one left out")
    seen = []

    def measured(given):
        seen.append(given)
        return {"layers": given.num_layers, "share": interval}

    first, second = measure_knowledge(model, measured).to_dict("records")
    assert seen == [model]
    assert (first["name"], first["value"], first["n"]) == ("layers", 5.0, 1)
    assert math.isnan(first["ci_low"])
    assert second == {"name": "share", **vars(interval)}
