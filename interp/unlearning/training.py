"""Fine-tuning V into U.

One loop: every step draws a batch of forget and a batch of retain examples, and takes an AdamW step
on the objective. Logits are formed at label positions only. The embedding (and with it a tied
unembedding) stays as it is, so that U shares it with V and the layers alone differ.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from interp.models.language_model import LanguageModel
from interp.unlearning.objectives import cross_entropy, gradient_difference


@dataclass(frozen=True, kw_only=True)
class Example:
    """A text to train on: the model reads the prompt, the loss is on the answer alone."""

    prompt: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class UnlearningConfig:
    """Settings of gradient difference.

    Attributes:
        learning_rate: AdamW's, without weight decay.
        num_steps: steps at most.
        stop_at: end once the forget examples' mean loss per token (nats), as seen in training,
            is at least this; gradient ascent has no end of its own.
        forget_batch: forget examples per step.
        retain_batch: retain examples per step.
        gamma: weight of −CE on the forget examples.
        alpha: weight of CE on the retain examples.
        max_grad_norm: gradients are clipped to this norm.
        autocast: compute in bfloat16 (weights stay in their own precision), several times faster
            where the processor has bf16 matrix units.
        seed: of the order of the examples.
    """

    learning_rate: float = 5e-6
    num_steps: int = 60
    stop_at: float = 8.0
    forget_batch: int = 12
    retain_batch: int = 24
    gamma: float = 1.0
    alpha: float = 3.0
    max_grad_norm: float = 1.0
    autocast: bool = True
    seed: int = 0


DEFAULTS = UnlearningConfig()


def unlearn(
    vanilla: LanguageModel,
    forget: Sequence[Example],
    retain: Sequence[Example],
    config: UnlearningConfig = DEFAULTS,
    *,
    progress: bool = True,
) -> tuple[LanguageModel, list[dict[str, float]]]:
    """Unlearn by gradient difference.

    Args:
        vanilla: V, left untouched.
        forget: F.
        retain: R.
        config: the settings.
        progress: show a progress bar on standard error.

    Returns:
        U, in evaluation mode, sharing V's embedding; and per step its losses in nats per token.

    Raises:
        ValueError: an empty set, or a loss that is no longer finite.
    """
    for name, examples in (("forget", forget), ("retain", retain)):
        if not examples:
            raise ValueError(f"the {name} set is empty: give at least one example")
    model = _copy_with_shared_embedding(vanilla.model)
    unlearned = LanguageModel(model, vanilla.tokenizer, name=f"{vanilla.name} unlearned")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=0.0)
    draw = random.Random(config.seed)
    history: list[dict[str, float]] = []
    model.train()
    bar = tqdm(range(config.num_steps), desc="unlearning", unit="step", disable=not progress)
    for step in bar:
        losses = []
        with torch.autocast(model.device.type, torch.bfloat16, enabled=config.autocast):
            for examples, size in ((forget, config.forget_batch), (retain, config.retain_batch)):
                batch = draw.sample(list(examples), min(size, len(examples)))
                losses.append(label_logprobs(unlearned, batch))
        forget_logprobs, retain_logprobs = losses
        loss = gradient_difference(
            forget_logprobs, retain_logprobs, gamma=config.gamma, alpha=config.alpha
        )
        if not loss.isfinite():
            raise ValueError(
                f"the loss is not finite at step {step}: lower the learning rate "
                f"({config.learning_rate})"
            )
        row = {
            "step": float(step),
            "forget_loss": cross_entropy(forget_logprobs).item(),
            "retain_loss": cross_entropy(retain_logprobs).item(),
        }
        history.append(row)
        bar.set_postfix_str(f"forget {row['forget_loss']:.2f}, retain {row['retain_loss']:.2f}")
        if row["forget_loss"] >= config.stop_at:
            break
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    bar.close()
    model.requires_grad_(False)
    model.eval()
    return unlearned, history


def _copy_with_shared_embedding(model: PreTrainedModel) -> PreTrainedModel:
    """A copy to train, but for its embedding and unembedding, which are the original's memory."""
    memo: dict[int, nn.Parameter] = {}
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert module is not None
        weight = module.weight
        assert isinstance(weight, nn.Parameter)
        memo.setdefault(id(weight), nn.Parameter(weight.data, requires_grad=False))
    shared = {id(parameter) for parameter in memo.values()}
    copied = copy.deepcopy(model, memo=dict(memo))
    for parameter in copied.parameters():
        parameter.requires_grad_(id(parameter) not in shared)
    return copied


def label_logprobs(model: LanguageModel, examples: Sequence[Example]) -> Float[Tensor, " label"]:
    """Log-probabilities of the examples' answer tokens, teacher-forced, in nats.

    Examples are padded on the right; logits are formed at label positions only.
    """
    rows, labels = [], []
    for example in examples:
        prompt = model.encode(example.prompt)
        whole = model.encode(example.prompt + example.answer)
        # A tokenizer may join the prompt's end with the answer: label what differs.
        shared = next(
            (i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt)
        )
        rows.append(whole)
        labels.append(range(max(1, min(shared, len(whole) - 1)), len(whole)))
    width = max(map(len, rows))
    device = model.device
    input_ids = torch.tensor([row + row[-1:] * (width - len(row)) for row in rows], device=device)
    states = model.anatomy.body(input_ids=input_ids, use_cache=False).last_hidden_state
    where = [(row, place) for row, places in enumerate(labels) for place in places]
    row_ids, places = (torch.tensor(column, device=device) for column in zip(*where, strict=True))
    logits = model.anatomy.logits(states[row_ids, places - 1])
    targets = input_ids[row_ids, places]
    return logits.float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def save(
    model: LanguageModel, directory: str | os.PathLike[str], *, card: dict[str, object]
) -> Path:
    """Write a model as a Hugging Face directory with a card, complete or not at all.

    Args:
        model: what to save; its tokenizer goes along.
        directory: where to; replaced if it exists.
        card: how the model came about, written to `unlearning.json`.
    """
    target = Path(directory)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        model.model.save_pretrained(scratch)
        model.tokenizer.save_pretrained(scratch)
        text = json.dumps(card, ensure_ascii=False, indent=2)
        (scratch / "unlearning.json").write_text(text + "\n", encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def make_card(
    vanilla: LanguageModel,
    forget: Sequence[Example],
    retain: Sequence[Example],
    config: UnlearningConfig,
) -> dict[str, object]:
    """Method, settings, data and parent of an unlearned model. Equal cards mean equal models."""
    return {
        "method": "gradient_difference",
        "settings": asdict(config),
        "parent": vanilla.name,
        "parent_hash": vanilla.content_hash(),
        "forget": [asdict(example) for example in forget],
        "retain": [asdict(example) for example in retain],
    }
