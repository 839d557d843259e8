"""KRS against numbers worked out by hand, a plain bootstrap loop and its invariances."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.recovery import contrast
from interp.recovery.krs import compute_krs
from interp.statistics import bootstrap, estimate_mean


def losses_table(cells, **columns):
    """One row per (site, layer, query_id, loss_unlearned, loss_restored), others as usual."""
    rows = [
        {
            "vanilla": "V",
            "unlearned": "U",
            "language": "en",
            "query_id": query_id,
            "concept": "capitals",
            "site": site,
            "layer": layer,
            "first_layer": max(0, layer - 2),
            "last_layer": layer + 2,
            "num_tokens": 30,
            "loss_unlearned": unlearned,
            "loss_restored": restored,
            "loss_self": np.nan,
            "engine": "layered",
            "dtype": "float32",
            "variant": "paper",
            "direction": "restore",
            "distance": "logit_mse",
            "positions": "all",
            "reason": "",
        }
        | columns
        for site, layer, query_id, unlearned, restored in cells
    ]
    return pd.DataFrame(rows)


# Two layers, two questions with loss(V, U) = 1 and 3, mean 2.
#   layer 0: loss(V, R) = 0.5 and 0.5, mean 0.5: KRS = 1 - 0.5 / 2 = 0.75
#            mean of ratios: 1 - (0.5/1 + 0.5/3) / 2 = 1 - 1/3 = 2/3
#   layer 1: loss(V, R) = 2 and 3, mean 2.5:     KRS = 1 - 2.5 / 2 = -0.25
#            mean of ratios: 1 - (2/1 + 3/3) / 2 = -1/2
HAND = [
    ("coef", 0, "a", 1.0, 0.5),
    ("coef", 0, "b", 3.0, 0.5),
    ("coef", 1, "a", 1.0, 2.0),
    ("coef", 1, "b", 3.0, 3.0),
]


def random_losses(num_queries=7, seed=0, **columns):
    rng = np.random.default_rng(seed)
    cells = []
    for query in range(num_queries):
        unlearned = float(rng.uniform(0.5, 4))
        for site in ("value", "attn"):
            for layer in (0, 1, 2):
                cells.append((site, layer, f"q{query}", unlearned, float(rng.uniform(0, 3))))
    return losses_table(cells, **columns)


def test_ratio_of_means_by_hand():
    table = compute_krs(losses_table(HAND))
    assert list(table.columns) == [
        "language",
        "site",
        "layer",
        "first_layer",
        "last_layer",
        "krs",
        "ci_low",
        "ci_high",
        "num_queries",
        "num_known",
        "num_asked",
        "num_tokens",
        "noise_floor",
        "reason",
    ]
    assert table["krs"].to_list() == pytest.approx([0.75, -0.25])
    assert table["layer"].to_list() == [0, 1]
    assert table["last_layer"].to_list() == [2, 3]
    assert table["num_queries"].to_list() == [2, 2]
    assert table["reason"].to_list() == ["", ""]
    # Two questions are drawn as aa, ab or bb: at layer 0, KRS is 0.5, 0.75 or 5/6, and aa and bb
    # have a quarter of the resamples each, so the 95 % interval reaches from one to the other.
    assert table["ci_low"].to_list() == pytest.approx([0.5, -1.0])
    assert table["ci_high"].to_list() == pytest.approx([5 / 6, 0.0])


def test_mean_of_ratios_by_hand():
    table = compute_krs(losses_table(HAND, variant="hong2024"))
    assert table["krs"].to_list() == pytest.approx([2 / 3, -0.5])
    with pytest.warns(UserWarning, match="only the averaging is that of 'hong2024'"):
        table = compute_krs(losses_table(HAND), variant="hong2024")
    assert table["krs"].to_list() == pytest.approx([2 / 3, -0.5])


def test_corrupt_direction_gives_the_effect():
    table = compute_krs(losses_table(HAND, direction="corrupt"))
    assert "krs" not in table
    assert table["effect"].to_list() == pytest.approx([0.25, 1.25])
    assert table["ci_low"].to_list() == pytest.approx([1 / 6, 1.0])
    assert table["ci_high"].to_list() == pytest.approx([0.5, 2.0])


def test_score_is_never_clipped():
    table = compute_krs(losses_table([("coef", 0, "a", 0.5, 50.0), ("coef", 0, "b", 1.5, 50.0)]))
    assert table["krs"].item() == pytest.approx(1 - 50 / 1)


@pytest.mark.parametrize("variant", ["paper", "hong2024"])
def test_interval_equals_a_plain_loop(variant):
    losses = random_losses(variant=variant)
    # One cell lacks a question that the others have: resamples that draw it count it nowhere.
    hole = (losses["site"] == "attn") & (losses["layer"] == 1) & (losses["query_id"] == "q3")
    losses.loc[hole, "loss_restored"] = np.nan
    table = compute_krs(losses, num_resamples=200, confidence=0.9, seed=3)

    queries = sorted(losses["query_id"].unique())
    weights = np.random.default_rng(3).multinomial(7, np.full(7, 1 / 7), size=200)
    for row in table.to_dict("records"):
        cell = losses[(losses["site"] == row["site"]) & (losses["layer"] == row["layer"])]
        cell = cell.set_index("query_id").loc[queries]
        scores = []
        for weight in weights:
            drawn = [query for query, w in zip(queries, weight, strict=True) for _ in range(w)]
            drawn = cell.loc[drawn].dropna(subset="loss_restored")
            if variant == "paper":
                ratio = drawn["loss_restored"].mean() / drawn["loss_unlearned"].mean()
            else:
                ratio = (drawn["loss_restored"] / drawn["loss_unlearned"]).mean()
            scores.append(1 - ratio)
        low, high = np.percentile(scores, [5, 95])
        assert (row["ci_low"], row["ci_high"]) == pytest.approx((low, high), abs=1e-12)
        assert row["ci_low"] < row["krs"] < row["ci_high"]


def test_interval_does_not_depend_on_other_groups():
    german = random_losses(seed=1, language="de")
    both = compute_krs(pd.concat([random_losses(), german]))
    alone = compute_krs(german)
    pd.testing.assert_frame_equal(both[both["language"] == "de"].reset_index(drop=True), alone)


def test_questions_without_loss_are_left_out_and_counted():
    losses = losses_table([*HAND, ("coef", 0, "c", np.nan, np.nan), ("coef", 1, "c", 9.0, np.nan)])
    losses.loc[4, "reason"] = "nothing scored: the answer is empty"
    losses.loc[5, "reason"] = None  # as some files give an empty text
    table = compute_krs(losses)
    assert table["krs"].to_list() == pytest.approx([0.75, -0.25])
    assert table["num_queries"].to_list() == [2, 2]
    assert table["reason"].to_list() == [
        "1 of 3 questions left out: nothing scored: the answer is empty",
        "1 of 3 questions left out: no loss",
    ]
    # A question that no cell can use takes no part in the resampling.
    np.testing.assert_allclose(table["ci_low"], compute_krs(losses_table(HAND))["ci_low"])


def test_a_missing_row_is_a_question_left_out():
    table = compute_krs(losses_table(HAND[:3]))
    assert table["krs"].to_list() == pytest.approx([0.75, -1.0])
    assert table["num_queries"].to_list() == [2, 1]
    assert table["reason"][1] == (
        "1 of 2 questions left out: not measured; one question: no interval"
    )
    assert table[["ci_low", "ci_high"]].loc[1].isna().all()


def test_nothing_scored_is_undefined_with_its_reason():
    nothing = [("coef", 0, "a", np.nan, np.nan), ("coef", 0, "b", np.nan, np.nan)]
    table = compute_krs(losses_table(nothing, reason="nothing scored: the answer is empty"))
    assert table[["krs", "ci_low", "ci_high"]].isna().all(axis=None)
    assert table["num_queries"].item() == 0
    assert table["reason"].item() == (
        "2 of 2 questions left out: nothing scored: the answer is empty"
    )


def test_unchanged_model_is_undefined():
    table = compute_krs(losses_table([("coef", 0, "a", 0.0, 0.0), ("coef", 0, "b", 0.0, 0.0)]))
    assert table[["krs", "ci_low", "ci_high"]].isna().all(axis=None)
    assert table["reason"].item() == "loss(V, U) is 0"


def test_ratio_of_one_question_undefined_in_hong2024():
    cells = [("coef", 0, "a", 0.0, 1.0), ("coef", 0, "b", 2.0, 1.0), ("coef", 0, "c", 4.0, 1.0)]
    table = compute_krs(losses_table(cells, variant="hong2024"))
    assert table["krs"].item() == pytest.approx(1 - (1 / 2 + 1 / 4) / 2)
    assert table["num_queries"].item() == 2
    assert table["reason"].item() == "1 of 3 questions left out: loss(V, U) is 0"


def test_infinite_loss_is_undefined_in_its_cell_only():
    cells = [*HAND[:3], ("coef", 1, "b", 3.0, np.inf)]
    table = compute_krs(losses_table(cells))
    assert table["krs"][0] == pytest.approx(0.75)
    assert table[["krs", "ci_low", "ci_high"]].loc[1].isna().all()
    assert table["reason"][1] == "the loss of 1 of 2 questions is infinite"


def test_noise_floor_over_the_measured_questions_of_a_site():
    losses = losses_table([*HAND, ("attn", 0, "a", 1.0, 0.5), ("attn", 0, "b", 3.0, 0.5)])
    # Measured on question b of `coef` only, at both layers: (0.003 + 0.006) / (3 + 3).
    losses.loc[[1, 3], "loss_self"] = [0.003, 0.006]
    table = compute_krs(losses)
    assert table["noise_floor"].to_list()[:2] == pytest.approx([0.0015, 0.0015])
    assert np.isnan(table["noise_floor"][2])


def test_models_are_kept_apart():
    other = losses_table([(*cell[:4], 2 * cell[4]) for cell in HAND], unlearned="U2")
    table = compute_krs(pd.concat([losses_table(HAND), other]))
    assert list(table.columns[:3]) == ["unlearned", "language", "site"]
    assert table["unlearned"].to_list() == ["U", "U", "U2", "U2"]
    assert table["krs"].to_list() == pytest.approx([0.75, -0.25, 0.5, -1.5])


def test_groups_by_concept_pool_the_languages():
    # Questions of the same name in two languages are two questions.
    table = compute_krs(
        pd.concat([losses_table(HAND), losses_table(HAND, language="de")]), by=["concept"]
    )
    assert table["num_queries"].to_list() == [4, 4]
    assert table["krs"].to_list() == pytest.approx([0.75, -0.25])


def test_order_is_that_of_first_appearance_with_layers_ascending():
    losses = losses_table(
        [("value", 1, "a", 1, 1), ("value", 0, "a", 1, 1), ("attn", 0, "a", 1, 1)]
    )
    table = compute_krs(pd.concat([losses.assign(language="zh"), losses.assign(language="de")]))
    assert table[["language", "site", "layer"]].to_numpy().tolist() == [
        [language, site, layer]
        for language in ("zh", "de")
        for site, layer in (("value", 0), ("value", 1), ("attn", 0))
    ]


def test_same_seed_same_table():
    losses = random_losses()
    pd.testing.assert_frame_equal(compute_krs(losses, seed=5), compute_krs(losses, seed=5))
    assert not compute_krs(losses, seed=5)["ci_low"].equals(compute_krs(losses, seed=6)["ci_low"])


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda t: t.drop(columns=["loss_self", "site"]), {}, "lacks the columns site, loss_self"),
        (lambda t: t.iloc[:0], {}, "is empty"),
        (lambda t: t, {"by": ("family",)}, "lacks the columns family"),
        (lambda t: t, {"by": ()}, "`by` is empty"),
        (lambda t: t, {"by": "site"}, "`by` names 'site'"),
        (lambda t: t, {"variant": "hong"}, "Unknown variant 'hong'; valid: paper, hong"),
        (lambda t: t, {"confidence": 95}, "confidence is 95"),
        (lambda t: t, {"num_resamples": 0}, "num_resamples is 0"),
        (lambda t: pd.concat([t, t]), {}, "Duplicate question 'a' .en. at site 'coef', layer 0"),
        *(
            (
                lambda t, name=name: pd.concat([t, t.assign(language="de", **{name: "else"})]),
                {},
                f"mixes several values of '{name}'",
            )
            for name in ("variant", "direction", "distance", "positions")
        ),
    ],
)
def test_bad_input_is_one_sentence(change, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        compute_krs(change(losses_table(HAND)), **arguments)
    assert "\n" not in str(error.value)


loss = st.floats(0, 1e3, allow_subnormal=False)
positive_loss = st.floats(1e-3, 1e3)
questions = st.lists(st.tuples(positive_loss, loss), min_size=2, max_size=8)


def table_of(pairs, variant="paper"):
    cells = [
        ("coef", 0, f"q{i}", unlearned, restored) for i, (unlearned, restored) in enumerate(pairs)
    ]
    return losses_table(cells, variant=variant)


@settings(max_examples=30, deadline=None)
@given(questions, st.floats(1e-3, 1e3), st.sampled_from(["paper", "hong2024"]))
def test_scale_of_the_losses_does_not_matter(pairs, scale, variant):
    scaled = [(scale * unlearned, scale * restored) for unlearned, restored in pairs]
    one = compute_krs(table_of(pairs, variant), num_resamples=20)
    other = compute_krs(table_of(scaled, variant), num_resamples=20)
    for column in ("krs", "ci_low", "ci_high"):
        assert one[column].item() == pytest.approx(other[column].item(), rel=1e-9, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(questions, st.sampled_from(["paper", "hong2024"]))
def test_score_is_at_most_one_and_one_where_all_is_restored(pairs, variant):
    table = compute_krs(table_of(pairs, variant), num_resamples=20)
    assert table["ci_low"].item() <= table["ci_high"].item() <= 1
    assert table["krs"].item() <= 1
    whole = compute_krs(table_of([(unlearned, 0.0) for unlearned, _ in pairs], variant))
    assert whole[["krs", "ci_low", "ci_high"]].to_numpy().tolist() == [[1, 1, 1]]


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_order_of_the_rows_does_not_matter(random):
    losses = pd.concat([random_losses(), random_losses(seed=1, language="de")], ignore_index=True)
    order = list(range(len(losses)))
    random.shuffle(order)
    keys = ["language", "site", "layer"]
    straight = compute_krs(losses, num_resamples=20).sort_values(keys, ignore_index=True)
    shuffled = compute_krs(losses.iloc[order], num_resamples=20)
    pd.testing.assert_frame_equal(straight, shuffled.sort_values(keys, ignore_index=True))


def test_input_is_left_alone():
    losses = random_losses()
    before = losses.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compute_krs(losses)
    pd.testing.assert_frame_equal(losses, before)


# Denominators that are not clearly positive


def signed(unlearned, restored, **columns):
    cells = [
        ("coef", 0, str(number), *both)
        for number, both in enumerate(zip(unlearned, restored, strict=True))
    ]
    return losses_table(cells, **columns)


@pytest.mark.parametrize("variant", ["paper", "hong2024"])
@pytest.mark.parametrize(
    ("unlearned", "restored", "settings", "says"),
    [
        # U is surer of the answer than V: the ratio would be -3, a KRS of 4.
        ([-0.1, -0.2, -0.1], [0.5, 0.4, 0.3], {"distance": "answer_logprob"}, "negative"),
        # The sum is 1e-5: the ratio would be 30,000.
        ([0.5, -0.49, -0.00999], [0.1] * 3, {"distance": "answer_logprob"}, "negative"),
        # Rounding alone.
        ([-1e-9, 1e-9, 2e-10], [1e-9] * 3, {"distance": "kl"}, "negative"),
        ([1e-42, 3e-42], [5e-43, 0.0], {}, "0 but for rounding"),
        ([1e-3] * 3, [5e-4] * 3, {"loss_self": 1e-2}, "not above the noise floor (10 of it)"),
    ],
)
def test_a_ratio_that_means_nothing_is_nan_with_a_reason(
    unlearned, restored, settings, says, variant
):
    (row,) = compute_krs(signed(unlearned, restored, variant=variant, **settings)).to_dict(
        "records"
    )
    if variant == "hong2024" and says == "negative":
        # Each question has a ratio of its own: those that mean nothing are left out.
        assert row["num_queries"] == sum(loss > 0 for loss in unlearned)
        assert "left out: loss(V, U) is negative" in row["reason"]
        return
    assert np.isnan([row["krs"], row["ci_low"], row["ci_high"]]).all()
    expected = "loss(V, U) is not clearly above 0" if says == "negative" else says
    if variant == "hong2024" and "rounding" in says:
        expected = "2 of 2 questions left out: loss(V, U) is 0 but for rounding"
    assert expected in row["reason"]


@pytest.mark.parametrize(
    ("unlearned", "restored", "settings", "says"),
    [
        ([-0.1, -0.2, -0.1], [0.5, 0.4, 0.3], {}, "not clearly above 0"),
        ([0.5, -0.49, -0.00999], [0.1] * 3, {}, "not clearly above 0"),
        ([0.0, 0.0], [0.0, 0.0], {}, "loss(V, U) is 0"),
        ([np.inf, 1.0], [1.0, 1.0], {}, "the loss of 1 of 2 questions is infinite"),
        ([1e-3] * 3, [5e-4] * 3, {"loss_self": 1e-2}, "not above the noise floor"),
    ],
)
def test_a_contrast_of_such_ratios_is_nan_with_the_reason(unlearned, restored, settings, says):
    table = signed(unlearned, restored, **settings)
    whole = pd.concat([table, random_losses(len(unlearned))])
    whole["query_id"] = [f"q{number}".replace("qq", "q") for number in whole["query_id"]]
    estimate = contrast(whole, lambda krs: krs["coef"].max() - krs["value"].max())
    assert np.isnan([estimate.value, estimate.ci_low, estimate.ci_high]).all()
    assert (estimate.n, says in estimate.reason) == (len(unlearned), True)
    # Curves that it does not look at are none of its business.
    estimate = contrast(whole, lambda krs: krs["attn"].max())
    assert np.isfinite([estimate.value, estimate.ci_low, estimate.ci_high]).all()


def test_a_contrast_has_the_scores_of_the_table():
    """Also at sizes whose sums overflow, and with a question that one cell lacks."""
    losses = random_losses()
    losses.loc[3, "loss_restored"] = np.nan
    right = compute_krs(losses).set_index(["site", "layer"])["krs"]
    for size in (1.0, 1e307, 1e-30):
        columns = ["loss_unlearned", "loss_restored"]
        scaled = losses.assign(**{name: losses[name] * size for name in columns})
        for site, layer in right.index:
            estimate = contrast(scaled, lambda krs, s=site, n=layer: krs[s][n], num_resamples=50)
            assert estimate.value == pytest.approx(right[site, layer], rel=1e-12)
            assert estimate.ci_low < estimate.value < estimate.ci_high


def test_a_contrast_between_models_whose_names_are_missing():
    table = signed([2.0, 4.0], [1.0, 2.0])
    table = pd.concat([table, table.assign(unlearned=None)])
    estimate = contrast(
        table, lambda krs: sum(curves[0] for curves in krs.values()), by=["unlearned"]
    )
    assert estimate.value == 1.0


def test_a_negative_loss_of_one_question_is_no_reason_to_give_up():
    """(2 + 3 + 4 - 0.001) / 4 is above 0 in every resample of these that holds another question."""
    unlearned = [2.0, 3.0, 4.0, 2.5, 3.5, 3.0, 2.0, -0.001]
    (row,) = compute_krs(signed(unlearned, [0.5] * 8, distance="answer_logprob")).to_dict("records")
    assert row["krs"] == pytest.approx(1 - 4 / 19.999)
    assert row["ci_low"] < row["krs"] < row["ci_high"]
    assert row["reason"] == ""


def test_the_effect_of_the_reverse_direction_needs_the_same_denominator():
    table = signed([-0.1, -0.2], [0.5, 0.4], direction="corrupt", distance="answer_logprob")
    (row,) = compute_krs(table).to_dict("records")
    assert np.isnan([row["effect"], row["ci_low"], row["ci_high"]]).all()
    assert "not clearly above 0" in row["reason"]


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e300, 8e307])
def test_no_sum_overflows(size):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (row,) = compute_krs(signed([size] * 3, [size / 10] * 3)).to_dict("records")
    assert row["krs"] == pytest.approx(0.9)
    assert row["ci_low"] == pytest.approx(0.9)


def test_scores_have_the_same_bits_at_every_power_of_two():
    table = random_losses()
    scores = compute_krs(table)["krs"]
    scaled = table.assign(
        loss_unlearned=table["loss_unlearned"] * 2.0**40,
        loss_restored=table["loss_restored"] * 2.0**40,
    )
    assert (compute_krs(scaled)["krs"] == scores).all()


def test_one_question_has_no_interval_anywhere():
    table = pd.concat([signed([2.0], [0.5], language=code) for code in ("de", "en")])
    for estimate in (
        contrast(table, lambda krs: krs["coef"].max()),
        bootstrap(1, lambda items: 2.0),
        estimate_mean([2.0, float("nan")]),
    ):
        assert np.isnan([estimate.ci_low, estimate.ci_high]).all()
        assert "no interval" in estimate.reason
    assert contrast(table, lambda krs: krs["coef"].max()).value == 0.75
