"""Questions in nine languages answered together, and one at a time."""

from functools import partial

import interp
from benchmarks.measuring import timed
from interp.behaviour.answers import generate


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
