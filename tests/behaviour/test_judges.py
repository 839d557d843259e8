"""Verdicts and their scores, and chat models as judges behind a server that fails before it works.

The prompts' texts are checked for what they must hold; the replies are those of a server here, or
of a tiny model.
"""

from __future__ import annotations

import math

import pandas as pd
import pytest

from interp import Query
from interp.behaviour import chat_judges
from interp.behaviour.answers import Answer
from interp.behaviour.chat_judges import OccurrenceJudge, QualityJudge
from interp.behaviour.judges import (
    Verdict,
    estimate_occurrence,
    estimate_quality,
    summarise_verdicts,
    tabulate_verdicts,
)
from interp.data import Endpoint
from tests.data.test_endpoints import Server, cache, clock, refusal, server  # noqa: F401
from tests.data.test_endpoints import answer as response
from tests.helpers.tiny_models import tiny, tokenizer, wrap


def verdict(value, *, language="en", judge="j", query_id="q"):
    return Verdict(query_id=query_id, language=language, judge=judge, value=value)


def answers(*texts, language="de"):
    return [
        Answer(
            query=Query(
                id=f"q{number}",
                language=language,
                prompt=f"Frage {number}: Wie heißt {{die}} Hauptstadt?",
                answer="Kairo",
                aliases=("Cairo", "Kairo"),
            ),
            text=text,
            sample=number,
        )
        for number, text in enumerate(texts)
    ]


# Scores.


def test_occurrence_by_hand():
    found = estimate_occurrence([verdict(value) for value in (1, 1, 0, 0, None)])
    assert (found.value, found.n) == (50.0, 4)
    # Wilson's interval of 2 of 4.
    assert (found.ci_low, found.ci_high) == pytest.approx((15.004, 84.996), abs=1e-2)
    assert found.reason == "1 of 5 answers have no verdict"
    found = estimate_occurrence([verdict(None), verdict(None)])
    assert (math.isnan(found.value), found.n) == (True, 0)
    assert found.reason == "2 of 2 answers have no verdict"
    assert estimate_occurrence([]).reason == "no items"


def test_quality_by_hand():
    found = estimate_quality([verdict(value) for value in (2, 9, 10, None)])
    assert (found.value, found.n, found.reason) == (7.0, 3, "1 of 4 answers have no verdict")
    assert 2 <= found.ci_low < 7 < found.ci_high <= 10


@pytest.mark.parametrize(
    ("score", "value", "says"),
    [
        (estimate_occurrence, 7, "a verdict of 7 is no occurrence: it must be 0 or 1"),
        (estimate_quality, 0, "a verdict of 0 is no quality: it must be 1 to 10"),
        (estimate_quality, 11, "a verdict of 11 is no quality: it must be 1 to 10"),
    ],
)
def test_verdicts_of_the_other_kind_are_refused(score, value, says):
    with pytest.raises(ValueError, match=says):
        score([verdict(1), verdict(value)])


def test_a_summary_has_a_row_for_every_judge_and_language():
    verdicts = [
        verdict(1, language="de"),
        verdict(0, language="en"),
        verdict(None, language="de"),
        verdict(0, language="de", judge="k"),
    ]
    table = summarise_verdicts(verdicts, of=estimate_occurrence)
    assert table[["judge", "language", "value", "n", "num_without"]].values.tolist() == [
        ["j", "de", 100.0, 1, 1],
        ["j", "en", 0.0, 1, 0],
        ["k", "de", 0.0, 1, 0],
    ]
    assert table["reason"].tolist() == ["1 of 2 answers have no verdict", "", ""]
    assert summarise_verdicts([], of=estimate_quality).columns.tolist() == table.columns.tolist()


def test_the_table_of_verdicts_keeps_their_reasons():
    failed = Verdict(
        query_id="p", language="hy", judge="j", value=None, reason="no answer", text="Ա"
    )
    table = tabulate_verdicts([verdict(1), failed])
    assert table["value"].tolist()[0] == 1.0
    assert pd.isna(table["value"].tolist()[1])
    assert table.loc[1, ["query_id", "language", "sample", "judge", "reason", "text"]].tolist() == [
        "p", "hy", 0, "j", "no answer", "Ա",
    ]  # fmt: skip
    assert tabulate_verdicts([]).columns.tolist() == table.columns.tolist()


# What a chat model is asked, and how its reply is read.


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("VERDICT: yes", 1.0),
        ("VERDICT: no", 0.0),
        ("  verdict:NO. \n", 0.0),
        ("The reply names Cairo.\n\nVERDICT: yes", 1.0),
        ("yes", None),
        ("VERDICT: maybe", None),
        ("VERDICT: yes or no", None),
        ("VERDICT: yes\nVERDICT: no", None),
        ("VERDICT: yes\nVERDICT: yes", None),
        ("Not VERDICT: no\nVERDICT: yes", None),
        ("My VERDICT: yes", None),
        ("VERDICT:\nyes", None),
        ("VERDICT: 1", None),
        ("SCORE: 7", None),
    ],
)
def test_one_verdict_in_the_form_that_was_asked_for(reply, value):
    judge = OccurrenceJudge(by=Endpoint(url="http://host/v1", model="m"))
    assert judge.parse_verdict(reply) == value


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("SCORE: 1", 1.0),
        ("Score: 10.", 10.0),
        ("It is right.\nSCORE: 7", 7.0),
        ("SCORE: 0", None),
        ("SCORE: 11", None),
        ("SCORE: 7.5", None),
        ("SCORE: 7/10", None),
        ("SCORE: seven", None),
        ("SCORE: N", None),
        ("SCORE: ٧", None),
        ("SCORE: 7\nSCORE: 8", None),
        ("7", None),
    ],
)
def test_one_score_from_1_to_10(reply, value):
    judge = QualityJudge(by=Endpoint(url="http://host/v1", model="m"))
    assert judge.parse_verdict(reply) == value


@pytest.mark.parametrize(
    ("kind", "form", "name"),
    [
        (OccurrenceJudge, ["VERDICT: yes", "VERDICT: no"], "occurrence by tiny"),
        (QualityJudge, ["SCORE: N"], "quality by tiny"),
    ],
)
def test_the_prompt_holds_question_answer_and_reply(server, cache, kind, form, name):  # noqa: F811
    server.reply = lambda prompt, again: response("?")
    asked = answers("Es ist {Rom}.\nFrage: und die Währung?")
    judge = kind(by=Endpoint(url=server.url, model="tiny"), cache=cache)
    kind(by=judge.by, cache=cache, whole_text=True)(asked)
    found = judge(asked)
    whole, first = (body["messages"][0]["content"] for _, _, body in server.requests)
    for prompt in (whole, first):
        assert "\nFrage 0: Wie heißt {die} Hauptstadt?\n" in prompt
        assert "\nKairo / Cairo\n" in prompt
        assert "German" in prompt
        assert all(line in prompt.splitlines() for line in form)
    assert "<reply>\nEs ist {Rom}.\n</reply>" in first
    assert "<reply>\nEs ist {Rom}.\nFrage: und die Währung?\n</reply>" in whole
    assert (found[0].value, found[0].reason, found[0].text) == (None, "?", "Es ist {Rom}.")
    assert (judge.name, found[0].judge) == (name, name)


def test_a_server_that_fails_before_it_works(server, cache, clock):  # noqa: F811
    """It hangs, is busy, breaks off and writes nonsense; the second run asks for the rest."""
    troubles = {"slow": "hang", "busy": refusal(429), "cut": response("VERDICT:", end="length")}
    said = {"right": "VERDICT: yes", "wrong": "VERDICT: no", "odd": "I could not say."}

    def reply(prompt, again):
        name = next(name for name in (*troubles, *said) if f"\n{name}\n" in prompt)
        asked.append(name)
        return response(said[name]) if name in said else troubles[name]

    asked = []
    server.reply = reply
    endpoint = Endpoint(url=server.url, model="tiny", timeout=0.5, num_retries=1, num_workers=1)
    judge = OccurrenceJudge(by=endpoint, cache=cache, progress=False)
    given = answers("right", "slow", "odd", "busy", "wrong", "cut")
    first = judge(given)
    assert [found.value for found in first] == [1.0, None, None, None, 0.0, None]
    assert [found.reason for found in first] == [
        "VERDICT: yes",
        "no answer within 0.5 seconds (after 2 tries)",
        "I could not say.",
        "the endpoint answers 429 (after 2 tries)",
        "VERDICT: no",
        "the answer was cut off at 2048 tokens; raise max_tokens",
    ]
    assert [found.sample for found in first] == [0, 1, 2, 3, 4, 5]
    score = estimate_occurrence(first)
    assert (score.value, score.n, score.reason) == (50.0, 2, "4 of 6 answers have no verdict")
    # The nonsense would come again, so it is kept; what failed is asked again.
    asked.clear()
    said |= dict.fromkeys(troubles, "VERDICT: yes")
    second = judge(given)
    assert [found.value for found in second] == [1.0, 1.0, None, 1.0, 0.0, 1.0]
    assert sorted(asked) == ["busy", "cut", "slow"]
    asked.clear()
    assert judge(given) == second
    assert asked == []


def test_a_server_that_is_not_there_is_one_error(cache, monkeypatch):  # noqa: F811
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    nowhere = Server()
    nowhere.server_close()
    judge = QualityJudge(by=Endpoint(url=nowhere.url, model="m", num_retries=0), cache=cache)
    with pytest.raises(ConnectionError, match="cannot be reached"):
        judge(answers("Rom"))


# A chat model that is loaded here.

TEMPLATE = (
    "{{ bos_token }} {% for m in messages %}w4 {{ m['content'] }} w5{% endfor %}"
    "{% if add_generation_prompt %} w6{% endif %}"
)


def chat_model(template=TEMPLATE):
    model = wrap(tiny(max_position_embeddings=512).model, name="V")
    own = tokenizer()
    own.chat_template = template
    return type(model)(model.model, own, name="V")


def test_a_local_model_gets_the_chat_that_its_template_writes(monkeypatch):
    model, asked = chat_model(), []

    def generate(by, queries, **settings):
        asked.extend(queries)
        assert by is model
        said = ["SCORE: 8", "SCORE: 80"]
        return [Answer(query=query, text=said[n]) for n, query in enumerate(queries)]

    monkeypatch.setattr(chat_judges, "generate", generate)
    found = QualityJudge(by=model)(answers("Kairo.", "Rom."))
    assert [(v.value, v.reason, v.judge) for v in found] == [
        (8.0, "SCORE: 8", "quality by V"),
        (None, "SCORE: 80", "quality by V"),
    ]
    # One token begins the text, not two, and the reply comes next.
    for query in asked:
        message = query.prompt.removeprefix(" w4 ").removesuffix(" w5 w6")
        assert "Kairo / Cairo" in message
        chat = [{"role": "user", "content": message}]
        wanted = model.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_dict=False
        )
        assert model.encode(query.prompt) == tuple(wanted)


def test_a_local_models_nonsense_is_no_verdict_and_is_kept(cache):  # noqa: F811
    model = chat_model()
    first, second = OccurrenceJudge(by=model, cache=cache, progress=False)(answers("Kairo", "Rom"))
    assert (first.value, second.value) == (None, None)
    assert {word[0] for word in first.reason.split()} == {"w"}
    assert len(first.reason.split()) <= chat_judges.NUM_TOKENS
    assert len(cache.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("by", "asked", "says"),
    [
        (lambda: tiny(), answers("Rom"), "V has no chat template: a judge must be a chat model"),
        (
            lambda: Endpoint(url="http://host/v1", model="m"),
            answers("Rom"),
            "a judge behind an endpoint needs a cache",
        ),
        (
            lambda: chat_model(),
            [Answer(query=Query(id="q", language="en", prompt="?"), text="Rome")],
            "q in 'en' has no answer to judge by",
        ),
    ],
)
def test_what_cannot_judge_or_be_judged(by, asked, says):
    with pytest.raises(ValueError, match=says):
        OccurrenceJudge(by=by())(asked)
