"""Benchmarks of the sweep, the training loop and answering, beside other ways to do the same.

    python experiments/benchmark.py [--only engines training answers] [--model gemma-3-270m]
        [--sites coef attn coef+attn value] [--prefix 200] [--device cuda --dtype bfloat16]

Each subject is a file under `benchmarks/`, whose docstring says what is compared.
"""

import argparse

from benchmarks.answers import answering
from benchmarks.engines import ROWS, SHAPES, Config, engines
from benchmarks.training import training

import interp

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    subjects = ["engines", "training", "answers"]
    parser.add_argument("--only", nargs="+", choices=subjects, default=subjects)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    shapes = ", ".join(SHAPES)
    parser.add_argument(
        "--model", default="gemma-3-270m", help=f"gemma-3-270m, or random of a shape: {shapes}"
    )
    parser.add_argument("--sites", nargs="+", default=["coef"], help="what is restored")
    parser.add_argument("--prefix", type=int, default=0, help="tokens of few-shot examples")
    parser.add_argument("--engines", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--device", default="cpu", help="cpu or cuda (timed by CUDA events)")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    given = parser.parse_args()
    if "engines" in given.only:
        engines(
            Config(
                model=given.model,
                sites=tuple(given.sites),
                prefix=given.prefix,
                rows=tuple(given.engines),
                repeats=1 if given.quick else 3,
                device=given.device,
                dtype=given.dtype,
            )
        )
    if "training" in given.only:
        training(interp.load("gemma-3-270m"), 4 if given.quick else 10)
    if "answers" in given.only:
        answering(interp.load("gemma-3-270m"), 8 if given.quick else 20)
