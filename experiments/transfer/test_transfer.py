"""A behaviour trained away: tasks, scores, findings by hand; the experiment on a tiny model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import interp.figures
from experiments.transfer import run as script
from experiments.transfer.config import Config
from experiments.transfer.data import AnswerPair, make_refusal_task, read_pairs, read_task
from experiments.transfer.figures import plot_rates
from experiments.transfer.findings import judge_claims
from experiments.transfer.run import measure_items, score_continuations, score_preferences
from experiments.transfer.tables import average_items, compare_rates, tabulate_reduction
from interp import Query
from interp.behaviour import Answer
from interp.unlearning import TrainingConfig
from tests.helpers.tiny_models import save, tiny

for package in ("scipy", "py3langid", "sacrebleu"):
    pytest.importorskip(package, reason=f"{package} (extra `behaviour`)")


# Tasks


def test_refusals_are_trained_in_english_and_asked_everywhere():
    task = make_refusal_task(
        ["en", "de", "zh"], num_training=3, num_asked=4, num_prompts=2, num_held_out=2
    )
    assert {pair.language for pair in task.training} == {"en"}
    assert {pair.id for pair in task.training}.isdisjoint({pair.id for pair in task.asked})
    # Three countries in three wordings, four in three languages.
    assert (len(task.training), len(task.asked)) == (9, 12)
    first = next(pair for pair in task.asked if pair.language == "de")
    assert first.prompt == "Frage: Wie heißt die Hauptstadt von Frankreich?\nAntwort:"
    assert (first.chosen, first.rejected) == (" Das weiß ich nicht.", " Paris")
    chinese = next(pair for pair in task.asked if pair.language == "zh")
    assert (chinese.chosen, chinese.rejected) == ("我不知道。", "巴黎")
    trained = task.training[0]
    assert trained.prompt == "Question: What is the capital of Germany called?\nAnswer:"
    assert (trained.chosen, trained.rejected) == (" I don't know.", " Berlin")
    assert [query.prompt for query in task.prompts[:2]] == [
        "This week's country portrait: France.",
        "From our series on the countries of the world, part two: Japan.",
    ]
    assert task.held_out[0].answer == (
        "This week's country portrait: France. The continent on which France lies is Europe. "
        "On the globe, you find France in Europe."
    )
    asked = {pair.prompt for pair in task.asked}
    assert asked.isdisjoint({pair.prompt for pair in task.training})
    assert asked == {query.prompt for query in task.questions}


def test_methods_learn_wanted_answers_or_pairs():
    task = make_refusal_task(["en"], num_training=1, num_asked=1, num_prompts=1, num_held_out=1)
    chosen = [
        " I don't know.",
        " I have no information about that.",
        " I cannot answer that question.",
    ]
    assert [one.answer for one in task.make_examples("finetune")["retain"]] == chosen
    sets = task.make_examples("dpo")
    assert [one.answer for one in sets["preferred"]] == chosen
    assert [one.answer for one in sets["forget"]] == [" Berlin"] * 3
    with pytest.raises(ValueError, match="no method 'ga'; valid: finetune, dpo"):
        task.make_examples("ga")


def test_wrong_tasks_are_one_sentence():
    with pytest.raises(ValueError, match="must hold 'en'"):
        make_refusal_task(["de"])
    with pytest.raises(ValueError, match="fewer than the 400 to train on"):
        make_refusal_task(["en"], num_training=400)
    with pytest.raises(ValueError, match="3 texts to continue are more than the 2 countries"):
        make_refusal_task(["en"], num_asked=2, num_prompts=3)


def lines(path: Path, *rows: dict) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_a_task_from_files(tmp_path):
    pair = {"prompt": "Say it.", "chosen": "No.", "rejected": "Yes."}
    files = {
        "training": lines(tmp_path / "training.jsonl", pair),
        "asked": lines(
            tmp_path / "asked.jsonl",
            {"id": 1, "language": "de", "chosen": "Er ist da.", "rejected": "Sie ist da."},
            {"id": 1, "language": "fr", "chosen": "Il est là.", "rejected": "Elle est là."},
        ),
        "prompts": lines(
            tmp_path / "prompts.jsonl",
            {"id": "t1", "language": "de", "prompt": "Es war"},
            {"id": "t1", "language": "fr", "prompt": "Il y avait"},
        ),
        "held_out": lines(tmp_path / "held.jsonl", {"language": "de", "answer": "Es war einmal."}),
        "curated": lines(tmp_path / "curated.jsonl", {"language": "en", "answer": "People work."}),
    }
    task = read_task(**files, languages=["de"], neutral=0.5)
    (trained,) = task.training
    assert (trained.id, trained.language, trained.chosen) == ("1", "en", " No.")
    (asked,) = task.asked
    assert (asked.id, asked.prompt, asked.rejected) == ("1", "", "Sie ist da.")
    # Sentences without a prompt cannot be asked.
    assert [query.prompt for query in task.questions] == ["Es war"]
    assert [one.answer for one in task.make_examples("finetune")["retain"]] == ["People work."]
    assert (task.neutral, task.per_token) == (0.5, True)
    with_prompt = lines(tmp_path / "asked2.jsonl", pair | {"id": "a", "language": "de"})
    answers = read_task(**files | {"asked": with_prompt})
    assert [(query.prompt, query.answer) for query in answers.questions] == [("Say it.", "Yes.")]
    assert not answers.per_token
    files["training"] = lines(tmp_path / "german.jsonl", pair | {"language": "de"})
    with pytest.raises(ValueError, match="has pairs in 'de'; training is in 'en'"):
        read_task(**files)


def test_malformed_pairs_are_named_by_their_line(tmp_path):
    same = lines(tmp_path / "same.jsonl", {"chosen": "A", "rejected": "A"})
    with pytest.raises(ValueError, match="line 1: 'chosen' and 'rejected' are the same"):
        read_pairs(same)
    with pytest.raises(ValueError, match="line 1: the field 'rejected' is missing"):
        read_pairs(lines(tmp_path / "lacking.jsonl", {"chosen": "A"}))
    with pytest.raises(ValueError, match="unknown language 'xx'"):
        read_pairs(lines(tmp_path / "xx.jsonl", {"language": "xx", "chosen": "A", "rejected": "B"}))


# Scores


def pair(chosen: str, rejected: str) -> AnswerPair:
    return AnswerPair(id="q", language="en", prompt="w3 w4", chosen=chosen, rejected=rejected)


@pytest.mark.parametrize("per_token", [False, True])
def test_the_preferred_answer_is_the_likelier(per_token):
    model = tiny()
    pairs = [pair(" w5 w6 w7", " w8"), pair(" w8", " w5 w6 w7")]
    rows = score_preferences(model, pairs, per_token=per_token, progress=False)

    def likelihood(answer: str) -> float:
        ids = torch.tensor([model.encode("w3 w4" + answer)])
        logs = model.model(ids).logits[0].double().log_softmax(-1)
        # <s> w3 w4 and then the answer.
        found = [logs[at - 1, ids[0, at]].item() for at in range(3, ids.shape[1])]
        return np.mean(found) if per_token else sum(found)

    margin = likelihood(" w8") - likelihood(" w5 w6 w7")
    found = pd.DataFrame(rows)
    assert found["measure"].tolist() == ["behaviour", "margin"] * 2
    assert found["value"].tolist() == pytest.approx(
        [float(margin > 0), margin, float(margin < 0), -margin], abs=1e-5
    )
    assert set(found["weight"]) == {1.0}


def test_abilities_of_continuations_by_hand():
    german = Query(id="t", language="de", prompt="Es war")
    texts = ["ein schöner Tag und die Kinder spielten im Garten", "das das das das", ""]
    found = pd.DataFrame(score_continuations([Answer(query=german, text=text) for text in texts]))
    told, varied = (found[found["measure"] == name] for name in ("consistency", "distinct-2"))
    assert told["value"].tolist()[0] == 1.0
    # Four times the same word is one of three pairs; nothing has no pairs and is in no language.
    assert varied["value"].tolist()[:2] == pytest.approx([1.0, 1 / 3])
    assert (told["weight"].tolist()[2], varied["weight"].tolist()) == (0.0, [1.0, 1.0, 0.0])


def table(measure: str, cells: dict[tuple[str, str], list[float]], weight: float = 1.0):
    """Values by (model, language), an item each; None has no weight."""
    return pd.DataFrame(
        [
            {
                "model": model,
                "language": code,
                "item": f"q{at}",
                "measure": measure,
                "value": math.nan if value is None else value,
                "weight": 0.0 if value is None else weight,
            }
            for (model, code), values in cells.items()
            for at, value in enumerate(values)
        ]
    )


def test_cells_by_hand():
    rows = average_items(table("nll", {("vanilla", "en"): [6.0, 10.0]}, weight=4.0))
    (row,) = rows.to_dict("records")
    assert row["measure"] == "perplexity"
    assert row["value"] == pytest.approx(math.exp(16 / 8))
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((math.exp(6 / 4), math.exp(10 / 4)))
    (row,) = average_items(table("behaviour", {("dpo", "de"): [1.0, 1.0, 0.0, None]})).to_dict(
        "records"
    )
    assert (row["value"], row["n"]) == (pytest.approx(2 / 3), 3)
    assert row["reason"] == "1 of 4 items have no value"
    # Wilson's of two in three.
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((0.2077, 0.9385), abs=1e-3)


def test_comparisons_draw_the_same_items_for_all():
    # What is alike in every item has no interval, however much items differ.
    values = {("vanilla", "en"): [1.0, 2.0, 9.0], ("dpo", "en"): [0.5, 1.5, 8.5]}
    found = compare_rates(
        table("margin", values), "margin", lambda r: r["vanilla", "en"] - r["dpo", "en"]
    )
    assert (found.value, found.ci_low, found.ci_high) == pytest.approx((0.5, 0.5, 0.5))
    assert found.n == 3
    # A second language with the same values adds nothing: items are drawn, not answers.
    one = {("dpo", "en"): [0.0, 1.0, 1.0, 0.0]}
    two = one | {("dpo", "de"): [0.0, 1.0, 1.0, 0.0]}
    alone = compare_rates(table("behaviour", one), "behaviour", lambda r: r["dpo", "en"])
    both = compare_rates(table("behaviour", two), "behaviour", lambda r: np.mean([*r.values()]))
    assert alone == both
    assert (alone.value, alone.ci_low, alone.ci_high) == (0.5, 0.0, 1.0)


def test_a_rate_weighs_its_items():
    rows = table("nll", {("dpo", "en"): [2.0, 10.0]})
    rows["weight"] = [1.0, 5.0]
    assert compare_rates(rows, "nll", lambda r: r["dpo", "en"]).value == pytest.approx(12 / 6)
    nothing = compare_rates(rows, "behaviour", lambda r: r["dpo", "en"])
    assert nothing.reason == "nothing was measured of behaviour"
    with pytest.raises(ValueError, match="duplicate item in a cell of nll"):
        compare_rates(pd.concat([rows, rows]), "nll", lambda r: r["dpo", "en"])


# Findings


def measured_items() -> pd.DataFrame:
    """DPO takes all away in English and some elsewhere; fine-tuning nothing, but the languages."""
    ten = 10
    behaviour = {("vanilla", code): [1.0] * ten for code in ("en", "ru", "de", "hy")}
    behaviour |= {("finetune", code): [1.0] * ten for code in ("en", "ru", "de", "hy")}
    for code, left in {"en": 0, "ru": 2, "de": 4, "hy": 8}.items():
        behaviour["dpo", code] = [1.0] * left + [0.0] * (ten - left)
    told = {("vanilla", code): [1.0] * ten for code in ("en", "ru", "de", "hy")}
    told |= {("dpo", code): [1.0] * ten for code in ("en", "ru", "de", "hy")}
    told |= {("finetune", code): [0.0] * ten for code in ("en", "ru", "de")}
    # Where nothing is told, there is nothing to compare.
    told["finetune", "hy"] = [None] * ten
    nll = {(model, code): [2.0] * ten for model, code in behaviour}
    nll |= {("finetune", code): [2.5] * ten for code in ("ru", "de", "hy")}
    nll |= {("dpo", code): [1.9] * ten for code in ("ru", "de", "hy")}
    return pd.concat([table("behaviour", behaviour), table("consistency", told), table("nll", nll)])


def test_reductions_have_intervals_over_items():
    rows = tabulate_reduction(measured_items(), "dpo").set_index("language")
    assert rows["reduction"].tolist() == pytest.approx([1.0, 0.8, 0.6, 0.2])
    assert rows["unlearned_in"].tolist() == [True, False, False, False]
    assert (rows["reduction_low"] <= rows["reduction"]).all()
    assert 0 < rows["reduction_low"]["de"] < 0.6 < rows["reduction_high"]["de"] < 1
    # Of a rate of one, half of which is there without the behaviour, 0.6 are all and more.
    neutral = tabulate_reduction(measured_items(), "dpo", neutral=0.5).set_index("language")
    assert neutral["reduction"]["de"] == pytest.approx(0.6 / 0.5)
    assert neutral["reduction_low"]["de"] == pytest.approx(2 * rows["reduction_low"]["de"])


def test_findings_by_hand():
    rows = measured_items()
    reduced = {method: tabulate_reduction(rows, method) for method in ("finetune", "dpo")}
    found = {
        item.signature: item for item in judge_claims(rows, reduced, pd.DataFrame(), note="small")
    }

    def of(beginning: str):
        return next(item for name, item in found.items() if name.startswith(beginning))

    english = of("DPO in English takes the behaviour away in English")
    assert (english.verdict, english.measure.value, english.note) == ("seen", 1.0, "small")
    elsewhere = of("DPO in English takes the behaviour away in other languages").measure
    assert elsewhere.value == pytest.approx((0.8 + 0.6 + 0.2) / 3)
    assert of("fine-tuning in English takes the behaviour away in English").verdict == "undecided"
    # The web has more Russian than German, and more German than Armenian.
    correlation = of("after DPO the reduction goes")
    assert (correlation.measure.value, correlation.measure.n) == (pytest.approx(1.0), 3)
    assert correlation.note == "n are languages, permutation p = 0.33; small"
    assert of("after fine-tuning the reduction goes").verdict == "not measured"
    consistency = of("fine-tuning costs language consistency").measure
    assert (consistency.value, consistency.ci_low) == (1.0, 1.0)
    assert of("fine-tuning costs fluency").measure.value == pytest.approx(0.5)
    assert of("DPO costs fluency").verdict == "contradicted"
    assert of("fine-tuning costs more fluency").measure.value == pytest.approx(0.6)
    assert of("DPO costs diversity").verdict == "not measured"
    assert of("after DPO, coefficients").verdict == "not measured"


def test_recovery_is_compared_at_the_best_windows():
    losses = pd.DataFrame(
        [
            {"method": method, "language": "en", "concept": "c", "query_id": query}
            | {"site": site, "layer": layer, "loss_unlearned": 1.0, "loss_restored": 1 - krs}
            for method, krs_of in {"dpo": {"coef+attn": (0.2, 0.9), "value": (0.3, 0.1)}}.items()
            for site, scores in krs_of.items()
            for layer, krs in enumerate(scores)
            for query in ("a", "b")
        ]
    )
    rows = measured_items()
    reduced = {method: tabulate_reduction(rows, method) for method in ("finetune", "dpo")}
    *_, finetune, dpo = judge_claims(rows, reduced, losses)
    assert dpo.measure.value == pytest.approx(0.9 - 0.3)
    assert finetune.verdict == "not measured"


def test_the_figure_shows_the_rates():
    rates = average_items(measured_items())
    figure = plot_rates(rates, title="T")
    shown = {(trace.name, trace.xaxis): trace for trace in figure.data}
    # Behaviour and consistency in per cent, perplexity as it is.
    assert list(shown["DPO", "x"].x) == [0, 20, 40, 80]
    assert list(shown["before training", "x2"].x) == [100] * 4
    assert list(shown["fine-tuning", "x2"].x) == [0] * 3
    perplexity = next(trace for key, trace in shown.items() if key == ("fine-tuning", "x3"))
    assert list(perplexity.x) == pytest.approx([math.exp(2.0)] + [math.exp(2.5)] * 3)
    assert figure.layout.xaxis3.type == "log"
    assert list(figure.layout.yaxis.ticktext) == [
        "English (en)",
        "Russian (ru)",
        "German (de)",
        "Armenian (hy)",
    ]
    assert "n = 10" in shown["DPO", "x"].hovertext[0]
    with pytest.raises(ValueError, match="The table of rates is empty"):
        plot_rates(rates.iloc[:0])


# The experiment


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """The script with a preset that a random model of fifty words can do."""
    few = {"num_steps": 2, "batch_size": 2, "learning_rate": 1e-2, "autocast": False}
    config = Config(
        model=save(tiny(), tmp_path / "V"),
        languages=("en", "de", "fr", "ru"),
        finetune=TrainingConfig(objective="finetune", **few),
        dpo=TrainingConfig(objective="dpo", **few),
        num_training=2,
        num_asked=3,
        num_prompts=2,
        num_held_out=2,
        num_tokens=3,
        swept=("en", "de"),
        num_swept=1,
        sites=("coef", "coef+attn", "value"),
    )
    monkeypatch.setattr(script, "PRESETS", {"quick": config})
    export = interp.figures.export
    monkeypatch.setattr(interp.figures, "export", lambda drawn, formats: export(drawn, formats=[]))
    return script.main


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (folder / "tables").iterdir()}


@pytest.mark.slow
def test_the_whole_experiment_goes_on_where_it_was_killed(
    experiment, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    with monkeypatch.context() as killed:
        killed.setattr(script, "sweep", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            experiment("quick", out=out)
    # What was trained and asked before is not done again.
    monkeypatch.setattr("interp.unlearning.training.TrainableModel", None)
    monkeypatch.setattr("experiments.transfer.run.score_labels", None)
    experiment("quick", out=out)
    first = contents(out)
    assert set(first) == {
        f"{name}.csv"
        for name in ("rates", "reductions", "predictors", "measures", "krs", "answers")
    }
    monkeypatch.setattr("interp.launch.worker.measure", None)
    monkeypatch.setattr(
        "interp.behaviour.answers.generate_continuations", lambda *_, **__: iter(())
    )
    experiment("quick", out=out)
    assert contents(out) == first
    about = json.loads((out / "study.json").read_text())
    assert about["config"]["dpo"]["num_steps"] == 2
    assert len(about["findings"]) == 17
    assert "DPO in English takes the behaviour away in English" in capsys.readouterr().out
    rates = pd.read_csv(out / "tables" / "rates.csv")
    assert set(rates["model"]) == {"vanilla", "finetune", "dpo"}
    # Three questions, two texts, in each of the four languages.
    assert rates.groupby("measure")["n"].max().to_dict() == {
        "behaviour": 3,
        "margin": 3,
        "perplexity": 2,
    } | {name: rates.groupby("measure")["n"].max()[name] for name in ("consistency", "distinct-2")}
    krs = pd.read_csv(out / "tables" / "krs.csv")
    assert set(krs["method"]) == {"finetune", "dpo"}
    assert set(krs["language"]) == {"en", "de"}


def test_items_are_those_of_the_models(tmp_path):
    task = make_refusal_task(
        ["en", "de"], num_training=1, num_asked=2, num_prompts=1, num_held_out=1
    )
    models = {"vanilla": tiny(), "dpo": tiny(seed=1)}
    found = measure_items(models, task, num_tokens=2, out=tmp_path, progress=False)
    again = measure_items(models, task, num_tokens=2, out=tmp_path, progress=False)
    pd.testing.assert_frame_equal(found, again)
    assert len(found) == 2 * 2 * (2 * 2 + 2 + 1)
    margins = found[found["measure"] == "margin"]
    own = pd.DataFrame(score_preferences(models["dpo"], task.asked, progress=False))
    assert margins.loc[margins["model"] == "dpo", "value"].tolist() == pytest.approx(
        own.loc[own["measure"] == "margin", "value"].tolist()
    )
