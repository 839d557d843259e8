"""Cases of a test that are run each time; all of them are run with the slow tests."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mark_rest(cases: Iterable[Any], sample: Collection[Any]) -> list[Any]:
    """Mark all cases but a sample as slow.

    Raises:
        ValueError: the sample holds what is no case, and would not be run.
    """
    cases = list(cases)
    if unknown := [case for case in sample if case not in cases]:
        raise ValueError(f"no such cases: {unknown}")
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=[] if case in sample else pytest.mark.slow,
        )
        for case in cases
    ]
