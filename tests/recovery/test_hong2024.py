"""`hong2024` against a plain transcription of its definition, written without the library.

The transcription: V answers a left-padded batch whose padding is the end-of-sequence token; every
row is decoded without special tokens and tokenized again, left-padded; V, U and R run on that; R is
U with V's states put in at all positions, padding included; the logits of the last n positions are
compared, n being T minus the end-of-sequence tokens in the generated row; the score is the mean
over questions of 1 − loss_R / loss_U.
"""

from __future__ import annotations

import copy

import pytest
import torch
from tokenizers import normalizers, processors

import interp
from interp import LanguageModel
from interp.data import score_as_hong2024
from tests.helpers.tiny_models import question, tiny, tokenizer, trajectory, wrap

LLAMA_LAYER = "model.layers.{}."
HOOKED = {"coef": "mlp.down_proj", "attn": "self_attn.o_proj"}


def left_padded(rows: list[list[int]], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[padding] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def transcribed(
    vanilla: LanguageModel,
    unlearned: LanguageModel,
    prompts: list[str],
    cells: list[tuple[tuple[str, ...], tuple[int, ...]]],
    num_tokens: int,
) -> tuple[list[int], list[list[float]]]:
    """n of every question, and its ratios for every (sites, layers)."""
    tok, eos = vanilla.tokenizer, vanilla.tokenizer.eos_token_id
    ids, mask = left_padded([tok(prompt)["input_ids"] for prompt in prompts], eos)
    with torch.no_grad():
        rows = vanilla.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=eos,
            eos_token_id=eos,
        )
        missing = ids.shape[1] + num_tokens - rows.shape[1]
        rows = torch.nn.functional.pad(rows, (0, missing), value=eos)
        counts = [num_tokens - int((row == eos).sum()) for row in rows]
        texts = tok.batch_decode(rows, skip_special_tokens=True)
        ids, mask = left_padded([tok(text)["input_ids"] for text in texts], eos)
        inputs = {"input_ids": ids, "attention_mask": mask}

        kept, handles = {}, []
        for sites, layers in cells:
            for layer in layers:
                for site in set(sites) & set(HOOKED):
                    module = vanilla.model.get_submodule(LLAMA_LAYER.format(layer) + HOOKED[site])
                    handles.append(
                        module.register_forward_hook(
                            lambda _m, args, out, key=(layer, site): kept.update(
                                {key: args[0] if key[1] == "coef" else out}
                            )
                        )
                    )
        z_v = vanilla.model(**inputs).logits
        for handle in handles:
            handle.remove()
        z_u = unlearned.model(**inputs).logits

        found = []
        for sites, layers in cells:
            restored = copy.deepcopy(unlearned.model)
            for layer in layers:
                path = LLAMA_LAYER.format(layer)
                if "value" in sites:
                    down = restored.get_submodule(path + HOOKED["coef"])
                    source = vanilla.model.get_submodule(path + HOOKED["coef"])
                    down.weight.copy_(source.weight)
                if "coef" in sites:
                    restored.get_submodule(path + HOOKED["coef"]).register_forward_pre_hook(
                        lambda _m, _a, state=kept[layer, "coef"]: (state,)
                    )
                if "attn" in sites:
                    restored.get_submodule(path + HOOKED["attn"]).register_forward_hook(
                        lambda _m, _a, _o, state=kept[layer, "attn"]: state
                    )
            z = restored(**inputs).logits
            ratios = []
            for row, n in enumerate(counts):
                if n <= 0:
                    ratios.append(float("nan"))
                    continue
                loss = (z_v[row, -n:] - z[row, -n:]).square().mean()
                loss_u = (z_v[row, -n:] - z_u[row, -n:]).square().mean()
                ratios.append(1 - (loss / loss_u).item())
            found.append(ratios)
    return counts, found


def cells_of(sites: list[str], num_layers: int, window: int):
    return [
        (
            tuple(site.split("+")),
            tuple(
                layer
                for layer in range(centre - window // 2, centre + window // 2 + 1)
                if 0 <= layer < num_layers
            ),
        )
        for site in sites
        for centre in range(num_layers)
    ]


def rewriting(**special: str):
    """Answers do not survive being decoded and tokenized again: w7 and w9 become w8."""
    tok = tokenizer(**special)
    tok.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace("w7", "w8"), normalizers.Replace("w9", "w8")]
    )
    return tok


def talkative(seed: int, tok) -> LanguageModel:
    model = tiny("llama", seed=seed).model
    generator = torch.Generator().manual_seed(5)
    for name, weight in model.named_parameters():
        # The same large weights in both, so that they differ by little.
        weight.add_(torch.randn(weight.shape, generator=generator) * 0.4)
        if "lm_head" in name:
            # Some words are said often: an end of sequence and words that are rewritten.
            weight[[2, 7, 9]] *= 1.5
    return LanguageModel(model, tok, name=f"model {seed}")


SITES = ["coef", "attn", "coef+attn", "value"]
NUM_TOKENS = 9
QUESTIONS = [question(n, words=words) for n, words in enumerate([4, 6, 3, 6, 5, 1])]


@pytest.mark.parametrize("engine", ["layered", "full"])
@pytest.mark.parametrize("bos", ["<s>", "</s>"], ids=["", "bos_is_eos"])
def test_hong2024_is_its_transcription(engine, bos):
    tok = rewriting(bos_token=bos)
    if bos == "</s>":
        tok.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="</s> $A", special_tokens=[("</s>", 2)]
        )
    vanilla, unlearned = talkative(0, tok), talkative(1, tok)
    cells = cells_of(SITES, 5, 3)
    prompts = [query.prompt for query in QUESTIONS]
    counts, expected = transcribed(vanilla, unlearned, prompts, cells, NUM_TOKENS)
    recovery = interp.sweep(
        vanilla,
        unlearned,
        QUESTIONS,
        sites=SITES,
        window=3,
        num_tokens=NUM_TOKENS,
        engine=engine,
        variant="hong2024",
        progress=False,
    )
    # The numbers of tokens are what makes the case: many, few, none, and fewer for short prompts.
    assert len({n for n in counts if n > 0}) >= 3
    assert 1 <= sum(n > 0 for n in counts) <= 6
    by_question = recovery.losses.groupby("query_id", sort=False)
    assert [max(0, n) for n in counts] == by_question["num_tokens"].first().tolist()
    expected = torch.tensor(expected, dtype=torch.float64)
    found = 1 - recovery.losses["loss_restored"] / recovery.losses["loss_unlearned"]
    found = torch.tensor(found.to_numpy().reshape(len(QUESTIONS), len(cells))).T
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, equal_nan=True)
    krs = recovery.krs()["krs"]
    assert krs.tolist() == pytest.approx(expected.nanmean(1).tolist(), abs=1e-5)
    # It is not the paper's score.
    paper = interp.sweep(
        vanilla, unlearned, QUESTIONS, sites=SITES, window=3, num_tokens=9, progress=False
    )
    assert (paper.krs()["krs"] - krs).abs().max() > 1e-2


def test_positions_and_tokens_by_hand():
    """Two prompts of 4 and 3 tokens, <s> included; nine answers' tokens less the padding."""
    tok = rewriting()
    vanilla = LanguageModel(tiny().model, tok)
    long = trajectory([1, 5, 6, 7], [8, 9, 10], query=question(0))
    short = trajectory([1, 5, 6], [8, 0, 10], query=question(1))
    empty = trajectory([1, 5], [11, 12], query=question(2))
    other_language = trajectory([1, 5], [11, 12], query=question(2, language="de"))
    found = score_as_hong2024([long, short, empty, other_language], vanilla)
    assert [item.prompt_ids for item in found] == [
        (1, 5, 6, 8, 8, 8, 10),
        (1, 5, 6, 8, 10),
        (1, 5, 11, 12),
        (1, 5, 11, 12),
    ]
    assert [item.scored for item in found] == [
        range(4, 7),
        range(3, 5),
        range(4, 4),
        range(2, 4),
    ]
    assert [item.reason for item in found[:2]] == ["", ""]
    assert (
        "counts 0 answer tokens after taking off 2 end-of-sequence and padding tokens"
        in found[2].reason
    )
    assert found[3].reason == ""


def test_nothing_to_score_is_an_error_not_everything():
    """z[-0:] would be the whole sequence."""
    vanilla = wrap(tiny().model)
    items = [
        trajectory([1] + [5] * 9, [11], query=question(0)),
        trajectory([1, 5], [11, 12], query=question(1)),
    ]
    found = score_as_hong2024(items, vanilla)
    assert len(found[1].scored) == 0
    assert found[1].reason.startswith("nothing scored")


@pytest.mark.gemma
def test_hong2024_is_its_transcription_on_gemma():
    vanilla = interp.load("gemma-3-270m")
    changed = copy.deepcopy(vanilla.model)
    generator = torch.Generator().manual_seed(0)
    for layer in (6, 7, 8):
        mlp, attention = changed.model.layers[layer].mlp, changed.model.layers[layer].self_attn
        for matrix in (mlp.down_proj, mlp.gate_proj, attention.o_proj):
            noise = torch.randn(matrix.weight.shape, generator=generator)
            matrix.weight.data += 0.5 * matrix.weight.std() * noise
    unlearned = LanguageModel(changed, vanilla.tokenizer, name="changed")
    asked = interp.queries("capitals", languages=["en"], limit=3)
    prompts = [query.prompt for query in asked]
    cells = [
        (("coef", "attn"), (5, 6, 7, 8, 9)),
        (("value",), (5, 6, 7, 8, 9)),
        (("attn",), (0, 1, 2)),
    ]
    counts, expected = transcribed(vanilla, unlearned, prompts, cells, 8)
    assert max(counts) > 0
    losses = interp.sweep(
        vanilla,
        unlearned,
        asked,
        sites=["attn", "coef+attn", "value"],
        num_tokens=8,
        variant="hong2024",
        progress=False,
    ).losses
    for (sites, layers), ratios in zip(cells, expected, strict=True):
        rows = losses[
            (losses["site"] == "+".join(sites))
            & (losses["first_layer"] == layers[0])
            & (losses["last_layer"] == layers[-1])
        ]
        assert rows["num_tokens"].tolist() == [max(0, n) for n in counts]
        found = (1 - rows["loss_restored"] / rows["loss_unlearned"]).tolist()
        assert found == pytest.approx(ratios, abs=1e-5, nan_ok=True)
