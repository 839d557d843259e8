"""Restored model that runs by itself: it says what the reference says of the whole text."""

from __future__ import annotations

import inspect

import pytest
import torch
from transformers import DynamicCache, StaticCache

import interp
from interp import Trajectory
from interp.recovery.batches import make_batch
from interp.recovery.engines.full import restore_model
from interp.recovery.hooks import record
from interp.recovery.pair import Pair
from interp.recovery.restored_model import apply_restoration
from interp.recovery.sites import ACTIVATION_SITES, NOTHING, SITES, Restoration
from tests.helpers.tiny_models import NUM_LAYERS, mixed_trajectories, tiny, tiny_pair, trajectory

# Sliding windows of 4 tokens, parallel and sequential blocks, blocks that add the residual stream,
# positions as rotations, embeddings and slopes, layers that merge the batch with the positions.
NAMES = ["llama", "gemma3", "gpt2", "gpt_neox", "bloom", "mistral", "xglm", "opt"]
EVERYWHERE = tuple(range(NUM_LAYERS))
RESTORATIONS = [
    NOTHING,
    *(Restoration(sites=(site,), layers=(1, 2)) for site in SITES),
    Restoration(sites=("coef", "attn"), layers=(0, 4)),
    Restoration(sites=("coef", "value", "norms", "unembed"), layers=(2, 3, 4)),
    Restoration(sites=("head",), layers=(0, 3), units=((1,), (0, 2))),
    Restoration(sites=("coef",), layers=(1, 4), units=((5, 7), (0,))),
    Restoration(sites=("coef", "attn"), layers=(1, 2), positions="prompt"),
    Restoration(sites=("attn", "value"), layers=(1, 2), positions="answer"),
    Restoration(sites=("coef",), layers=(1, 3), units=((5, 7), (0,)), positions="answer"),
]
NUM_STEPS = 6


def texts() -> list[Trajectory]:
    """Prompts of several lengths, each with an answer of six tokens."""
    found = mixed_trajectories(3)
    return [
        Trajectory(
            query=item.query,
            prompt_ids=item.prompt_ids,
            answer_ids=tuple(range(3 + index, 3 + index + NUM_STEPS)),
            answer="",
            scored=range(len(item.prompt_ids) - 1, len(item.prompt_ids) + NUM_STEPS),
        )
        for index, item in enumerate(found)
    ]


@torch.inference_mode()
def reference(pair: Pair, restoration: Restoration) -> torch.Tensor:
    """[query, step, vocab]: every question by itself, its whole text at once."""
    found = []
    for item in texts():
        batch = make_batch([item])
        states = record(pair.donor.anatomy, batch, ACTIVATION_SITES).layers
        with restore_model(
            pair, restoration, states, batch.select_positions(restoration.positions)
        ):
            logits = pair.base.model(**batch.inputs(pair.base.anatomy.body)).logits
        found.append(logits[batch.scored])
    return torch.stack(found)


def padded(prompts: list[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return ids, (torch.arange(width) >= width - lengths[:, None]).long()


@torch.inference_mode()
def step_by_step(model, *, own_cache: bool) -> torch.Tensor:
    """[query, step, vocab]: all questions, padded on the left; the prompt, then token by token."""
    ids, mask = padded([item.prompt_ids for item in texts()])
    answers = torch.tensor([item.answer_ids for item in texts()])
    takes_positions = "position_ids" in inspect.signature(model.anatomy.body.forward).parameters
    cache = DynamicCache(config=model.model.config) if own_cache else None
    found = []
    for step in range(NUM_STEPS + 1):
        options = {}
        if takes_positions:
            options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = model.model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **options
        )
        found.append(output.logits[:, -1])
        cache = output.past_key_values
        if step < NUM_STEPS:
            ids = answers[:, [step]]
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    return torch.stack(found, 1)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, what: object = "") -> None:
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error < 1e-5, (what, error)


@pytest.mark.parametrize(
    ("name", "direction"), [*((name, "restore") for name in NAMES), ("gemma3", "corrupt")]
)
def test_every_step_is_that_of_the_whole_text(name, direction):
    pair = tiny_pair(name, direction=direction)
    plain = step_by_step(pair.base, own_cache=True)
    for number, restoration in enumerate(RESTORATIONS):
        with apply_restoration(pair, restoration):
            actual = step_by_step(pair.base, own_cache=number % 2 == 0)
        assert_close(actual, reference(pair, restoration), restoration)
        if restoration != NOTHING:
            assert (actual - plain).abs().max() > 1e-3
    assert torch.equal(step_by_step(pair.base, own_cache=True), plain)


@pytest.mark.parametrize("name", NAMES[:5])
def test_without_a_cache(name):
    pair = tiny_pair(name)
    ids, mask = padded([item.token_ids for item in texts()])
    options = {}
    if "position_ids" in inspect.signature(pair.base.anatomy.body.forward).parameters:
        options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    for restoration in (item for item in RESTORATIONS if item.positions == "all"):
        with apply_restoration(pair, restoration), torch.inference_mode():
            logits = pair.base.model(
                input_ids=ids, attention_mask=mask, use_cache=False, **options
            ).logits
        assert_close(logits[:, -NUM_STEPS - 1 :], reference(pair, restoration), restoration)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}], ids=str)
@pytest.mark.parametrize("name", NAMES[:5])
def test_everything_restored_generates_as_vanilla(name, options):
    pair = tiny_pair(name)
    ids, mask = padded([item.prompt_ids for item in texts()])
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": mask} | options

    def generated(model):
        return model.model.generate(ids, **options).tolist()

    of_vanilla, of_unlearned = generated(pair.vanilla), generated(pair.unlearned)
    assert of_vanilla != of_unlearned
    # The last layer's residual stream, its norm and the unembedding are all that logits depend on.
    top = ("resid", "norms", "unembed")
    with interp.restore(pair.unlearned, pair.vanilla, top, layers=[NUM_LAYERS - 1]):
        assert generated(pair.unlearned) == of_vanilla
    with interp.restore(pair.unlearned, pair.vanilla, "+".join(SITES)):
        assert generated(pair.unlearned) == of_vanilla
    # The donor follows its own beams, so that a wrong order would show.
    with interp.restore(pair.unlearned, pair.vanilla, "coef", [1]):
        restored = generated(pair.unlearned)
    assert generated(pair.unlearned) == of_unlearned
    cacheless = {**options, "use_cache": False}
    with interp.restore(pair.unlearned, pair.vanilla, "coef", [1]):
        assert pair.unlearned.model.generate(ids, **cacheless).tolist() == restored


def test_the_units_that_are_named():
    pair = tiny_pair()
    ids, _ = padded([(5, 6, 7)])

    def logits(*args, **kwargs):
        with interp.restore(pair.unlearned, pair.vanilla, *args, **kwargs):
            return pair.unlearned.model(ids).logits

    named = logits("coef", units={1: [3], 3: [0, 7]})
    with apply_restoration(pair, Restoration(sites=("coef",), layers=(1, 3), units=((3,), (0, 7)))):
        assert torch.equal(pair.unlearned.model(ids).logits, named)
    assert torch.equal(logits("head@2[1]"), logits("head", [2], units=[1]))
    assert torch.equal(logits("head[1]", [2]), logits("head", units={2: [1]}))
    assert not torch.equal(logits("head", [2]), logits("head@2[1]"))
    for nothing in ({"layers": []}, {"units": {}}, {"units": []}):
        assert torch.equal(logits("coef", **nothing), pair.unlearned.model(ids).logits)
    # Every head of a layer is the whole state.
    assert torch.equal(logits("head", [2]), logits("head@2[0,1,2,3]"))


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_restored_with_itself_it_is_itself(name):
    model = tiny(name)
    plain = step_by_step(model, own_cache=True)
    with interp.restore(model, model, "+".join(SITES)):
        assert torch.equal(step_by_step(model, own_cache=True), plain)


def test_a_block_within_a_block():
    """One site in one layer and another in another, the second from a third model."""
    vanilla, unlearned, third = tiny("gemma3"), tiny("gemma3", seed=1), tiny("gemma3", seed=2)
    with interp.restore(unlearned, third, "resid"):
        assert_close(step_by_step(unlearned, own_cache=True)[:, 0], readout(third, unlearned))
        with interp.restore(unlearned, vanilla, "resid", [NUM_LAYERS - 1]):
            inner = step_by_step(unlearned, own_cache=True)
        assert_close(inner[:, 0], readout(vanilla, unlearned))


def readout(body, reader) -> torch.Tensor:
    """One model's last residual stream at the prompts' ends, read by another."""
    found = []
    for item in texts():
        batch = make_batch([item])
        residual = record(body.anatomy, batch, {"resid"}).layers[-1].resid
        state = reader.anatomy.readout_state(residual[0, len(item.prompt_ids) - 1])
        found.append(reader.anatomy.logits(state))
    return torch.stack(found)


@pytest.mark.gemma
def test_gemma_step_by_step(gemma_pair):
    """Two questions of unlike lengths, padded, against each by itself without a cache."""
    vanilla, unlearned = gemma_pair.vanilla, gemma_pair.unlearned
    prompts = ["The capital of France is", "Question: What is the capital of the United Kingdom?"]
    ids, mask = padded([vanilla.encode(prompt) for prompt in prompts])
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    restoration = Restoration(sites=("coef", "attn"), layers=(8, 9, 10))
    with apply_restoration(gemma_pair, restoration):
        said = unlearned.model.generate(ids, **options)
    for row, tokens in enumerate(said.sequences):
        batch = make_batch([trajectory(tokens[mask[row].argmax() :].tolist(), [0])])
        with torch.inference_mode():
            states = record(vanilla.anatomy, batch, restoration.sites).layers
            with restore_model(gemma_pair, restoration, states, batch.real):
                logits = unlearned.model(input_ids=batch.input_ids).logits
        assert_close(torch.stack(said.logits, 1)[row], logits[0, -6:-1])


# Afterwards all is as it was


def hooks_of(model) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for module in model.model.modules()
    )


@pytest.mark.parametrize("fails", [False, True])
def test_both_models_are_as_they_were(fails):
    pair = tiny_pair("gemma3")
    before = [model.content_hash() for model in (pair.vanilla, pair.unlearned)]
    keys = list(pair.unlearned.model.state_dict())
    plain = step_by_step(pair.unlearned, own_cache=True)
    cache = DynamicCache(config=pair.unlearned.model.config)
    with torch.inference_mode():
        try:
            with interp.restore(pair.unlearned, pair.vanilla, "+".join(SITES)):
                pair.unlearned.model(torch.tensor([[3, 4, 5]]), past_key_values=cache)
                assert hooks_of(pair.unlearned) > 0
                if fails:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
    assert len(cache.layers) == NUM_LAYERS
    assert hooks_of(pair.unlearned) == hooks_of(pair.vanilla) == 0
    assert before == [model.content_hash() for model in (pair.vanilla, pair.unlearned)]
    assert list(pair.unlearned.model.state_dict()) == keys
    assert torch.equal(step_by_step(pair.unlearned, own_cache=True), plain)


def test_a_forward_that_fails_leaves_the_next_one_right():
    pair = tiny_pair()
    with interp.restore(pair.unlearned, pair.vanilla, "coef", [1]):
        expected = step_by_step(pair.unlearned, own_cache=True)
        with pytest.raises(IndexError):
            pair.unlearned.model(torch.tensor([[10_000]]))
        assert torch.equal(step_by_step(pair.unlearned, own_cache=True), expected)


def test_a_cache_that_is_emptied_begins_anew():
    pair = tiny_pair("gemma3")
    model, ids = pair.unlearned.model, torch.tensor([[3, 4, 5, 6, 7, 8]])
    with interp.restore(pair.unlearned, pair.vanilla, "attn", [1, 2]), torch.inference_mode():
        cache = DynamicCache(config=model.config)
        first = model(ids, past_key_values=cache).logits
        cache.reset()
        assert_close(model(ids, past_key_values=cache).logits, first)
        assert len(cache.layers) == 2 * NUM_LAYERS


# Errors


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("coeff",), {}, "unknown site 'coeff'"),
        (("coef", [5]), {}, "layer 5 is out of range 0 to 4"),
        (("coef", [-1]), {}, "layer -1 is out of range"),
        (("coef@2", [1]), {}, "the site 'coef@2' names its layer: leave `layers` out"),
        (("coef", [1]), {"units": {1: [2]}}, "units given by layer name the layers"),
        (("head", [1]), {"units": [4]}, "head 4 is out of range 0 to 3 .in each layer"),
        (("coef",), {"units": {0: [24]}}, "coefficient 24 is out of range 0 to 23"),
        (("attn",), {"units": [0]}, "single units can be restored of the sites coef and head"),
        (("coef",), {"positions": "start"}, "unknown positions 'start'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_is_not_there_is_refused(arguments, options, message):
    pair = tiny_pair()
    with (
        pytest.raises(ValueError, match=message),
        interp.restore(pair.unlearned, pair.vanilla, *arguments, **options),
    ):
        pytest.fail("the block must not begin")
    assert hooks_of(pair.unlearned) == 0


def test_models_that_do_not_match_are_refused():
    with (
        pytest.raises(ValueError, match="does not match"),
        interp.restore(tiny(), tiny(num_layers=4), "coef"),
    ):
        pass


def test_forwards_that_cannot_be_restored_are_refused():
    pair = tiny_pair()
    model, ids = pair.unlearned.model, torch.tensor([[3, 4, 5]])
    filled = model(ids).past_key_values
    static = StaticCache(config=model.config, max_cache_len=8)
    embeds = model.get_input_embeddings()(ids)
    with interp.restore(pair.unlearned, pair.vanilla, "coef"):
        with pytest.raises(ValueError, match="must be given input_ids, not inputs_embeds"):
            model(inputs_embeds=embeds)
        with pytest.raises(ValueError, match=r"must be a DynamicCache .*, not a StaticCache"):
            model(ids, past_key_values=static)
        with pytest.raises(ValueError, match="this cache was filled outside of restore"):
            model(ids[:, :1], past_key_values=filled)
    with (
        interp.restore(pair.unlearned, pair.vanilla, "coef", positions="prompt"),
        pytest.raises(ValueError, match="positions='prompt' needs the model's cache"),
    ):
        model(ids, use_cache=False)
