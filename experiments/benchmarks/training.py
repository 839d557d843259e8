"""Training steps of `interp.unlearning` beside the same steps with the model's own loss.

A step of gradient difference on 12 + 12 sequences of 16 tokens; the model's own loss forms all
logits. Memory is the peak of two steps in a new process beyond the loaded model: the trained copy
of the layers, gradients, AdamW's moments.
"""

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch
from benchmarks.measuring import peak_memory, timed

import interp
from interp.unlearning import Example, TrainableModel, TrainingConfig, make_batch, tokenize, train


def training(vanilla: interp.LanguageModel, num_steps: int) -> None:
    """Time a step of our loop beside one with the model's own loss, and measure their memory."""
    print(f"\n{'a gd step':34}{'ours':>8}{'full logits':>13}{'ratio':>8}{'memory':>10}{'':>12}")
    for labels, num_prompt in (("answers of 4 tokens", 12), ("all tokens", 1)):
        rows = {name: sequences(vanilla, name, num_prompt) for name in ("forget", "retain")}
        for precision in ("bfloat16", "float32"):
            seconds, memory = {}, {}
            for name, take in STEPS.items():

                def steps(count: int, take=take, rows=rows, precision=precision) -> None:
                    take(vanilla, rows, count, precision == "bfloat16")

                steps(1)
                # What is done once, such as copying the model, cancels.
                once, often = (timed(partial(steps, n), 1)[0][0] for n in (1, 1 + num_steps))
                seconds[name] = (often - once) / num_steps
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as new:
                    memory[name] = new.submit(memory_of_steps, name, num_prompt, precision).result()
            print(
                f"{labels + ', ' + precision:34}{seconds['ours']:7.2f}s{seconds['full']:12.2f}s"
                f"{seconds['ours'] / seconds['full']:8.2f}"
                f"{memory['ours'] / 2**30:6.2f} GiB{memory['full'] / 2**30:8.2f} GiB"
            )


def sequences(vanilla: interp.LanguageModel, name: str, num_prompt: int) -> list[Example]:
    """Make twelve texts of 16 tokens; all but the first `num_prompt` (with <bos>) are labels."""
    words = ["city", "river", "house", "garden", "window", "summer"]
    words += ["winter", "morning", "table", "bread", "water", "stone"]
    examples = []
    for number in range(12):
        chosen = [
            words[(number + place * (2 if name == "forget" else 5)) % 12] for place in range(15)
        ]
        prompt = " ".join(chosen[: num_prompt - 1])
        answer = "".join(f" {word}" for word in chosen[num_prompt - 1 :]).removeprefix(
            "" if prompt else " "
        )
        examples.append(Example(prompt=prompt, answer=answer))
        assert len(vanilla.encode(prompt + answer)) == 16
    return examples


def our_steps(
    vanilla: interp.LanguageModel, rows: Mapping[str, list[Example]], num_steps: int, autocast: bool
) -> None:
    """Take steps of `interp.unlearning.training`."""
    config = TrainingConfig(objective="gd", num_steps=num_steps, batch_size=12, autocast=autocast)
    train(vanilla, rows, config, progress=False)


def full_logits_steps(
    vanilla: interp.LanguageModel, rows: Mapping[str, list[Example]], num_steps: int, autocast: bool
) -> None:
    """Take the same steps with the library's own loss: logits at all positions."""
    model = TrainableModel(vanilla, "layers").model.model
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-6, weight_decay=0.0, fused=True)
    batches = []
    for sign, name in ((-1, "forget"), (1, "retain")):
        batch = make_batch([tokenize(vanilla, row) for row in rows[name]], vanilla.device)
        labels = torch.full_like(batch.input_ids, -100)
        labels[batch.sequence, batch.place] = batch.targets
        batches.append((sign, batch.input_ids, labels))
    for _ in range(num_steps):
        for sign, input_ids, labels in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = sign * model(input_ids=input_ids, labels=labels, use_cache=False).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


STEPS = {"ours": our_steps, "full": full_logits_steps}
"""Both ways to take steps, by name."""


def memory_of_steps(name: str, num_prompt: int, precision: str) -> int:
    """Measure the bytes that two steps take beyond the loaded model, in a process of its own."""
    vanilla = interp.load("gemma-3-270m")
    rows = {which: sequences(vanilla, which, num_prompt) for which in ("forget", "retain")}
    return peak_memory(lambda: STEPS[name](vanilla, rows, 2, precision == "bfloat16"))
