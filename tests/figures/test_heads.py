"""Scores of single heads as a figure."""

import numpy as np
import pandas as pd
import pytest

from interp import figures


def scores(*cells: tuple[str, str, int, float]) -> pd.DataFrame:
    """Build a KRS table of (language, site, layer, krs)."""
    constants = {"ci_low": 0.0, "ci_high": 1.0, "num_queries": 3, "noise_floor": 0.0, "reason": ""}
    return pd.DataFrame(
        {
            "language": language,
            "site": site,
            "layer": layer,
            "first_layer": layer,
            "last_layer": layer,
            "krs": krs,
        }
        | constants
        for language, site, layer, krs in cells
    )


def test_layers_by_heads_one_facet_per_language():
    table = scores(
        *(
            (language, f"head[{head}]", layer, 0.1 * head + 0.01 * layer + offset)
            for language, offset in (("de", 0), ("en", 0.5))
            # Not in the heads' order, and more than ten of them.
            for head in (11, 0, 2)
            for layer in (0, 1)
        ),
        ("de", "coef", 0, 0.9),
    )
    figure = figures.plot_heads(table, title="Heads")
    german, english = figure.data
    assert list(german.y) == ["head 0", "head 2", "head 11"]
    assert list(german.x) == [0, 1]
    np.testing.assert_allclose(german.z, [[0, 0.01], [0.2, 0.21], [1.1, 1.11]])
    np.testing.assert_allclose(np.subtract(english.z, german.z), 0.5)
    texts = [annotation.text for annotation in figure.layout.annotations]
    assert texts == ["German (de)", "English (en)"]
    assert german.hovertext[1][1].startswith("<b>head 2</b><br>German (de)<br>layer 1<br>KRS 0.210")
    # The first head stands at the top.
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]


def test_tables_without_heads_are_refused():
    with pytest.raises(ValueError, match="holds no single heads"):
        figures.plot_heads(scores(("de", "coef", 0, 0.5), ("de", "head[0,1]", 0, 0.5)))
    with pytest.raises(ValueError, match="lacks the columns site"):
        figures.plot_heads(scores(("de", "head[0]", 0, 0.5)).drop(columns="site"))
