"""How fast the sweep, the training loop and answering are, beside plain ways to do the same.

    python experiments/benchmark.py [--quick] [--only sweep|training|answers]

One process, one pair of models (Gemma-3-270M and the same with every layer's weights perturbed), 10
questions of about 15 + 30 tokens, windows of 5 layers, float32. Plain hooks: one whole forward per
window, as `engines/full.py` does it. The floor counts the multiplications that no exact method can
leave out and divides them by the speed of a large matrix product measured in the same run.

Training: a step of gradient difference on 12 + 12 sequences of 16 tokens (`interp.unlearning`), and
the same step with the model's own loss, which forms all logits. Memory is the peak of two steps in
a new process beyond the loaded model: the trained copy of the layers, gradients, AdamW's moments.
"""

import argparse
import copy
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any, TypeVar

import psutil
import torch
from transformers import PreTrainedModel

import interp
from interp.behaviour.answers import generate
from interp.models.anatomy import LayerParts
from interp.recovery.engines import ENGINES
from interp.recovery.pair import Pair
from interp.recovery.sites import NOTHING, Restoration, windows
from interp.unlearning.config import TrainingConfig
from interp.unlearning.examples import Example, batch_of, tokenize
from interp.unlearning.trainee import Trainee
from interp.unlearning.training import train

T = TypeVar("T")
ONE = ("coef",)
FOUR = ("coef", "attn", "coef+attn", "value")
COUNTRIES = ["France", "Germany", "Italy", "Spain", "Japan", "China", "Russia", "Egypt", "India"]
COUNTRIES += ["Brazil"]


def main(quick: bool, only: str | None) -> None:
    """Print the tables."""
    vanilla = interp.load("gemma-3-270m")
    if only in (None, "sweep"):
        sweeping(vanilla, quick)
    if only in (None, "training"):
        training(vanilla, 4 if quick else 10)
    if only in (None, "answers"):
        answering(vanilla, 8 if quick else 20)


def answering(vanilla: interp.LanguageModel, per_language: int) -> None:
    """Questions in nine languages answered together, and one at a time."""
    codes = ["en", "de", "fr", "zh", "ru", "ja", "ar", "hi", "ur"]
    asked = interp.queries("capitals", languages=codes, limit=per_language)
    generate(vanilla, asked[:2], num_tokens=2, progress=False)
    seconds, texts = {}, {}
    for size in (64, 1):
        call = partial(generate, vanilla, asked, num_tokens=30, batch_size=size, progress=False)
        (seconds[size],), answers = timed(call, 1)
        texts[size] = [answer.text for answer in answers]
    same = sum(one == other for one, other in zip(*texts.values(), strict=True))
    print(f"\n{len(asked)} answers of 30 tokens")
    print(f"64 at a time {seconds[64]:.1f} s, one at a time {seconds[1]:.1f} s")
    print(f"one at a time / batched: {seconds[1] / seconds[64]:.1f}; {same} answers are the same")


def training(vanilla: interp.LanguageModel, num_steps: int) -> None:
    """A step of our loop beside one with the model's own loss, and the memory of both."""
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
    """Twelve texts of 16 tokens; all but the first `num_prompt` (with <bos>) are labels."""
    words = ["city", "river", "house", "garden", "window", "summer"]
    words += ["winter", "morning", "table", "bread", "water", "stone"]
    found = []
    for number in range(12):
        chosen = [
            words[(number + place * (2 if name == "forget" else 5)) % 12] for place in range(15)
        ]
        prompt = " ".join(chosen[: num_prompt - 1])
        answer = "".join(f" {word}" for word in chosen[num_prompt - 1 :]).removeprefix(
            "" if prompt else " "
        )
        found.append(Example(prompt=prompt, answer=answer))
        assert len(vanilla.encode(prompt + answer)) == 16
    return found


def our_steps(
    vanilla: interp.LanguageModel, rows: Mapping[str, list[Example]], num_steps: int, autocast: bool
) -> None:
    """Steps of `interp.unlearning.training`."""
    config = TrainingConfig(objective="gd", num_steps=num_steps, batch_size=12, autocast=autocast)
    train(vanilla, rows, config, progress=False)


def full_logits_steps(
    vanilla: interp.LanguageModel, rows: Mapping[str, list[Example]], num_steps: int, autocast: bool
) -> None:
    """The same with the library's own loss: logits at all positions."""
    model = Trainee(vanilla, "layers").model.model
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-6, weight_decay=0.0, fused=True)
    batches = []
    for sign, name in ((-1, "forget"), (1, "retain")):
        batch = batch_of([tokenize(vanilla, row) for row in rows[name]], vanilla.device)
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
    """Bytes that two steps take beyond the loaded model; for a process of its own."""
    vanilla = interp.load("gemma-3-270m")
    rows = {which: sequences(vanilla, which, num_prompt) for which in ("forget", "retain")}
    return peak_memory(lambda: STEPS[name](vanilla, rows, 2, precision == "bfloat16"))


def sweeping(vanilla: interp.LanguageModel, quick: bool) -> None:
    """The layered engine."""
    unlearned = interp.LanguageModel(perturbed(vanilla.model), vanilla.tokenizer, name="perturbed")
    asked = [interp.Query(id=name, language="en", prompt=PROMPT.format(name)) for name in COUNTRIES]
    answers = interp.trajectories(vanilla, asked)
    lengths = [len(item.prompt_ids) for item in answers], [len(item.answer_ids) for item in answers]
    print(f"{len(asked)} questions, prompts {lengths[0]}, answers {lengths[1]} tokens")
    speed = matrix_speed()
    print(
        f"matrix products: {speed / 1e9:.0f} GFLOP/s in float32, {torch.get_num_threads()} threads"
    )

    def run(engine: str, sites: Sequence[str], **options: object) -> Callable[[], torch.Tensor]:
        restorations = restorations_of(sites, vanilla.num_layers)
        # A new pair each time: the Gram matrices are part of the work.
        return lambda: ENGINES[engine](
            Pair(vanilla=vanilla, unlearned=unlearned), answers, restorations, **options
        )

    run("layered", ONE)()
    memory = peak_memory(run("layered", FOUR))
    times, losses = {}, {}
    for name, engine, sites, repeats, options in (
        ("layered, coef", "layered", ONE, 5, {}),
        ("layered, four sites", "layered", FOUR, 3, {}),
        ("plain hooks, coef", "full", ONE, 1 if quick else 3, {"batch_size": 10}),
    ):
        times[name], losses[name] = timed(run(engine, sites, **options), repeats)
    layered, plain = times["layered, coef"], times["plain hooks, coef"]
    print(f"\n{'':22}{'median':>8}{'least':>8}{'most':>8}{'floor':>8}{'floor/median':>14}")
    for name, seconds in times.items():
        line = (
            f"{name:22}{statistics.median(seconds):7.2f}s{min(seconds):7.2f}s{max(seconds):7.2f}s"
        )
        if name.startswith("layered"):
            sites = ONE if "coef" in name else FOUR
            floor = 2 * products(vanilla, answers, sites) / speed
            line += f"{floor:7.2f}s{floor / statistics.median(seconds):14.2f}"
        print(line)
    four = statistics.median(times["layered, four sites"]) / statistics.median(layered)
    difference = (krs(losses["layered, coef"]) - krs(losses["plain hooks, coef"])).abs().max()
    print(f"\nplain hooks / layered: {statistics.median(plain) / statistics.median(layered):.1f}")
    print(f"four sites / one site: {four:.2f}")
    print(f"largest KRS difference: {difference:.1e}")
    print(f"peak memory of four sites beyond the two models: {memory / 2**30:.2f} GiB")


PROMPT = "Question: What is the capital of {}?\nAnswer: The"


def perturbed(model: PreTrainedModel) -> PreTrainedModel:
    """A copy with noise of 2 % on the layers' weights; the embedding is the original's memory."""
    embedding = model.get_input_embeddings().get_parameter("weight")
    other = copy.deepcopy(model, memo={id(embedding): embedding})
    torch.manual_seed(0)
    for parameter in other.parameters():
        if parameter is not embedding:
            parameter.data += torch.randn_like(parameter) * parameter.std() * 0.02
    return other


def restorations_of(sites: Sequence[str], num_layers: int) -> list[Restoration]:
    """The empty restoration (U itself), then every window of every site."""
    return [NOTHING, *(item for site in sites for item in windows(site, num_layers=num_layers))]


def timed(call: Callable[[], T], repeats: int) -> tuple[list[float], T]:
    """Seconds of each call, and the last result."""
    seconds = []
    result: Any = None
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return seconds, result


def peak_memory(call: Callable[[], object]) -> int:
    """Bytes of resident memory that a call takes at its peak, sampled every 5 ms."""
    process, ended = psutil.Process(), threading.Event()
    before = most = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.005):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    ended.set()
    watcher.join()
    return most - before


def matrix_speed(size: int = 2048, repeats: int = 20) -> float:
    """Floating-point operations per second of a large float32 matrix product."""
    one, other = torch.randn(size, size), torch.randn(size, size)
    seconds, _ = timed(lambda: one @ other, repeats)
    return 2 * size**3 / statistics.median(seconds[repeats // 4 :])


def krs(losses: torch.Tensor) -> torch.Tensor:
    """KRS of every restoration; the first row is U's own loss."""
    means = losses.mean(1)
    return 1 - means[1:] / means[0]


def products(
    vanilla: interp.LanguageModel, answers: Sequence[interp.Trajectory], sites: Sequence[str]
) -> float:
    """Multiplications that an exact sweep needs: weights × tokens, and attention scores.

    V and U run once. Two windows of a site that begin alike are one row until they part. Within a
    window what is restored is not computed, and at its first layer nothing but what follows from
    the restored part. In the last layer queries, outputs and MLP are needed at scored positions
    only. Half a Gram matrix of the unembedding (it is symmetric).
    """
    num_layers = vanilla.num_layers
    num_tokens = sum(item.scored.stop for item in answers)
    num_scored = sum(len(item.scored) for item in answers)
    # Every token attends to those before it, twice (scores and values).
    attended = sum(item.scored.stop * (item.scored.stop + 1) / 2 for item in answers)
    config = vanilla.model.config
    d_attn = config.num_attention_heads * config.head_dim
    d_kv = config.num_key_value_heads * config.head_dim
    d_model, vocab_size = config.hidden_size, config.vocab_size

    def layer_cost(parts: LayerParts, layer: int) -> dict[str, float]:
        here = num_scored if layer == num_layers - 1 else num_tokens
        attn = d_model * (2 * d_attn * here + 2 * d_kv * num_tokens) + 2 * d_attn * attended
        keys = sum(key.get_parameter("weight").numel() for key in parts.keys)
        values = parts.values.get_parameter("weight").numel()
        return {"attn": attn, "keys": keys * here, "values": values * here}

    costs = [layer_cost(parts, layer) for layer, parts in enumerate(vanilla.anatomy.layers)]
    total = 2 * sum(sum(cost.values()) for cost in costs) + vocab_size * d_model**2 / 2
    known: set[tuple[str, int]] = set()
    rows: set[tuple[str, tuple[int, ...]]] = set()
    for site in sites:
        for item in windows(site, num_layers=num_layers):
            for layer in range(item.layers[0], num_layers):
                history = tuple(index for index in item.layers if index <= layer)
                inside, fresh = layer in item.layers, layer == item.layers[0]
                if (site, (*history, -layer)) in rows:
                    continue
                rows.add((site, (*history, -layer)))
                cost = costs[layer]
                if not inside:
                    total += sum(cost.values())
                elif site == "attn":
                    total += cost["keys"] + cost["values"]
                elif site == "coef":
                    total += 0 if fresh else cost["attn"]
                elif site == "value" and not fresh:
                    total += sum(cost.values())
                # The known MLP output: once per layer, whatever the row or the site.
                of = "value" if site == "value" else "coef"
                if inside and site != "attn" and (fresh or site != "value"):
                    total += 0 if (of, layer) in known else cost["values"]
                    known.add((of, layer))
    return total


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--only", choices=["sweep", "training", "answers"], help="one part")
    given = parser.parse_args()
    main(given.quick, given.only)
