"""Tuning goes from neighbour to neighbour, and makes the model with the most retained."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

import interp
from interp import Query, figures
from interp.behaviour import generate
from interp.data import Text
from interp.pipelines import summarise_evaluation
from interp.unlearning import Bound, Trained, TrainingConfig
from tests.helpers.tiny_models import question, tiny

UNTIL = (Bound(metric="forget", below=0.1),)
GUARDS = (Bound(metric="retention", above=0.8),)
CONFIG = TrainingConfig(
    objective="npo", learning_rate=1e-3, num_steps=4, batch_size=2, evaluate_every=2,
    autocast=False, until=UNTIL, guards=GUARDS, settings={"beta": 1.0},
)  # fmt: skip


def known(numbers) -> list[Query]:
    asked = [question(number) for number in numbers]
    answers = generate(tiny(), asked, num_tokens=1, progress=False)
    return [
        # An answer is one word, as tiny models repeat themselves.
        replace(query, answer=answer.text.strip(), stop=(" ",))
        for query, answer in zip(asked, answers, strict=True)
        if answer.text.strip()
    ]


QUERIES = known(range(40))
TARGETS, KEPT = QUERIES[:4], QUERIES[4:28]
FORGET = [
    Text(id=query.id, language="en", kind="", prompt=query.prompt, answer=f" {query.answer}")
    for query in TARGETS
]


def tune(config=CONFIG, **changes):
    settings = {"targets": TARGETS, "kept": KEPT, "samples": (), "progress": False} | changes
    return interp.tune(tiny(), FORGET, (), config, **settings)


@pytest.fixture
def scripted(monkeypatch):
    """Let a trial's outcome depend on its settings, without training."""
    tried = []

    def run(plan, config, **_others):
        rate, beta = config.learning_rate, config.settings["beta"]
        tried.append((rate, beta))
        # Best at a rate of 4e-3 and β = 3: nearer is better in both.
        far = abs(math.log2(rate / 4e-3)) + abs(math.log(beta / 3, 3))
        names = plan.guards.list_metrics()
        row = dict.fromkeys(names, 0.0) | {"forget/en": 0.0, "retention/en": 1 - far / 20}
        return Trained(model=tiny(), history=[{"loss": 1.0} | row], reason="")

    monkeypatch.setattr("interp.pipelines.unlearning.UnlearningSetup.run", run)
    monkeypatch.setattr("interp.pipelines.tuning.write_csv", lambda *_: None)
    monkeypatch.setattr("interp.pipelines.tuning.report", lambda *_: None)
    return tried


def test_the_search_goes_to_the_best_settings(scripted):
    found = tune(num_trials=20)
    assert found.config.learning_rate == pytest.approx(4e-3)
    assert found.config.settings["beta"] == pytest.approx(3)
    # The model is made with the best settings at last.
    assert scripted[-1] == pytest.approx((4e-3, 3.0))
    assert len(set(scripted)) == len(scripted) - 1


def test_it_ends_after_so_many_trials(scripted):
    found = tune(num_trials=2)
    assert len(scripted) == 3
    assert found.trials["trial"].max() == 2


def test_smaller_steps_come_first_where_guards_broke(monkeypatch):
    rates = []

    def run(plan, config, **_others):
        rates.append(config.learning_rate)
        row = dict.fromkeys(plan.guards.list_metrics(), 0.0) | {"retention/en": 0.1}
        return Trained(model=tiny(), history=[{"loss": 1.0} | row], reason="")

    monkeypatch.setattr("interp.pipelines.unlearning.UnlearningSetup.run", run)
    monkeypatch.setattr("interp.pipelines.tuning.report", lambda *_: None)
    tune(num_trials=2)
    assert rates[1] == rates[0] / 2


def test_trials_are_kept(scripted, tmp_path):
    tune(num_trials=3, out=tmp_path / "m")
    before = len(scripted)
    tune(num_trials=3, out=tmp_path / "m")
    # Only the model itself is made again, which the real run would find.
    assert len(scripted) == before + 1
    assert len(list((tmp_path / "m.tuning").iterdir())) == 3


def test_a_real_search_forgets(tmp_path):
    found = tune(replace(CONFIG, num_steps=6), num_trials=2, out=tmp_path / "m")
    assert found.trials.groupby("trial")["best"].sum().tolist() == [1, 1]
    assert found.trials["forget"].iloc[0] == 1.0
    assert (tmp_path / "m" / "report" / "tuning.csv").is_file()
    assert (tmp_path / "m" / "unlearning.json").is_file()
    assert list(found.table()["trial"]) == [1, 2]
    figure = found.figure(title="t")
    assert [trace.name for trace in figure.data if trace.showlegend is not False] == [
        "learning rate 0.001, beta 1", figure.data[2].name,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="lacks the columns hold"):
        figures.plot_tuning(found.trials.drop(columns="hold"))


def test_the_worst_language_counts():
    metrics = {"forget/en": 0.0, "forget/de": 0.5, "retention/en": 0.9, "retention/fr": 0.7}
    row = summarise_evaluation(3, metrics, metrics, CONFIG)
    assert (row["step"], row["forget"], row["retention"]) == (3, 0.5, 0.7)
    assert math.isnan(row["reference_kl"])
    assert row["distance"] == pytest.approx(0.4)
    assert not row["hold"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"config": None, "method": "memit_empty"}, "memit_empty has no steps to tune"),
        ({"num_trials": 0}, "num_trials must be at least 1"),
        ({"targets": [], "kept": ()}, "unknown metric|answers too few"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_mistakes(changes, says):
    with pytest.raises(ValueError, match=says):
        tune(**({"config": CONFIG} | changes))
