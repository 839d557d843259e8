"""Questions in nine languages answered together, and one at a time."""

from functools import partial

from benchmarks.measuring import timed

import interp
from interp.behaviour import generate


def answering(vanilla: interp.LanguageModel, per_language: int) -> None:
    """Time questions in nine languages answered together, and one at a time."""
    codes = ["en", "de", "fr", "zh", "ru", "ja", "ar", "hi", "ur"]
    queries = interp.queries("capitals", languages=codes, limit=per_language)
    generate(vanilla, queries[:2], num_tokens=2, progress=False)
    seconds, texts = {}, {}
    for size in (64, 1):
        call = partial(generate, vanilla, queries, num_tokens=30, batch_size=size, progress=False)
        (seconds[size],), answers = timed(call, 1)
        texts[size] = [answer.text for answer in answers]
    same = sum(one == other for one, other in zip(*texts.values(), strict=True))
    print(f"\n{len(queries)} answers of 30 tokens")
    print(f"64 at a time {seconds[64]:.1f} s, one at a time {seconds[1]:.1f} s")
    print(f"one at a time / batched: {seconds[1] / seconds[64]:.1f}; {same} answers are the same")
