"""Data goes one way: a module imports only from rooms above its own, and heavy things late."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import interp

ROOMS = [
    "files",
    "languages",
    "models",
    "data",
    "unlearning",
    "recovery",
    "behaviour",
    "results",
    "figures",
    "launch",
    "runs",
    "evaluation",
    "study",
    "report",
    "demo",
    "cli",
]
# A model's methods for exploring are a face of the heart: they only call what stands there.
FACES = {"models/language_model.py": {"recovery"}}
HOME = Path(interp.__file__).parent
MODULES = sorted(
    str(path.relative_to(HOME)) for path in HOME.rglob("*.py") if path != HOME / "__init__.py"
)


def imported(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_of(path: Path) -> set[str]:
    """The rooms of this library that a file imports from; the public face is the lowest but one."""
    found = set()
    for name in imported(path):
        top, _, rest = name.partition(".")
        if top != "interp":
            continue
        room = rest.partition(".")[0]
        # `import interp`, or a name of its face: whatever the face leads to.
        found.add(room if room in ROOMS else "launch")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_upwards(module):
    room = Path(module).parts[0].removesuffix(".py")
    assert room in ROOMS, f"the room {room!r} has no place in the order"
    allowed = {*ROOMS[: ROOMS.index(room) + 1]} | FACES.get(module, set())
    assert rooms_of(HOME / module) <= allowed


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("recovery")])
def test_the_heart_knows_no_files_plots_or_training(module):
    assert not rooms_of(HOME / module) & {"results", "figures", "unlearning", "launch"}
    tops = {name.partition(".")[0] for name in imported(HOME / module)}
    assert not tops & {"pathlib", "pyarrow", "plotly", "os", "io", "tyro", "matplotlib"}


@pytest.mark.parametrize("module", MODULES)
def test_nothing_depends_on_tests_experiments_or_notebooks(module):
    tops = {name.partition(".")[0] for name in imported(HOME / module)}
    assert not tops & {"tests", "experiments", "notebooks", "pytest", "models_for_tests"}


# transformers itself needs tqdm.
HEAVY = {"pandas", "plotly", "pyarrow", "tyro", "peft", "gguf", "kaleido", "IPython"}
HEAVY |= {"scipy", "sacrebleu", "rouge_score", "nltk", "py3langid"}
HEAVY |= {"transformer_lens", "nnsight", "accelerate", "ray"}


def without(*names: str) -> str:
    """A program's first line: these packages are not installed."""
    return f"import sys; sys.modules.update(dict.fromkeys({sorted(names)}))\n"


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=HOME.parent,
    )


def test_import_needs_nothing():
    """Not even torch: names are imported when they are first asked for."""
    done = python(
        without(*HEAVY, "tqdm", "torch", "transformers")
        + "import interp; print(*sorted(dir(interp)))"
    )
    assert done.stderr == ""
    assert done.stdout.split() == sorted(interp.__all__)


def test_loading_needs_torch_and_transformers_only():
    done = python(
        without(*HEAVY)
        + "import interp; interp.LanguageModel; interp.load; interp.Restoration; print('loaded')"
    )
    assert done.stdout == "loaded\n", done.stderr[-800:]


def test_the_public_face_is_what_is_promised():
    assert {"load", "queries", "trajectories", "sweep", "LanguageModel", "Query"} <= set(
        interp.__all__
    )
    for name in interp.__all__:
        assert getattr(interp, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'recover'"):
        interp.recover  # noqa: B018


def test_importing_has_no_effects():
    done = python("import interp.cli, interp.launch, interp.figures; print('imported')")
    assert (done.stdout, done.stderr) == ("imported\n", "")
