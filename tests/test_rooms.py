"""The house: data goes one way, without circles; rooms have doors; a word means one thing.

A room is a package or a file of `interp/`. What these tests read is the source, so that an import
inside a function counts as any other.
"""

from __future__ import annotations

import ast
import builtins
import dis
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import CodeType

import pytest

import interp
from tests.helpers import ROOT

ROOMS = [
    "files",
    "tables",
    "languages",
    "statistics",
    "lazy",
    "models",
    "data",
    "unlearning",
    "recovery",
    "behaviour",
    "results",
    "figures",
    "launch",
    "pipelines",
    "evaluation",
    "report",
    "demo",
    "cli",
]
HOME = Path(interp.__file__).parent
MODULES = sorted(
    str(path.relative_to(HOME)) for path in HOME.rglob("*.py") if path != HOME / "__init__.py"
)
PACKAGES = sorted(path.parent.name for path in HOME.glob("*/__init__.py"))


def dotted(path: Path) -> str:
    """A file's module name, of the package where it is an `__init__`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {
    dotted(path): path for top in ("interp", "experiments") for path in (ROOT / top).rglob("*.py")
}


def imported(source: str) -> set[str]:
    """The names that a source imports, dotted, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imports_of(path: Path) -> set[str]:
    """The modules of this repository that a file imports."""
    names = imported(path.read_text(encoding="utf-8"))
    modules = {name if name in FILES else name.rpartition(".")[0] for name in names}
    return modules & FILES.keys() - {dotted(path)}


def rooms_of(path: Path) -> set[str]:
    """The rooms of this library that a file imports from; the face leads to all but the last."""
    rooms = set()
    for name in imported(path.read_text(encoding="utf-8")):
        top, _, rest = name.partition(".")
        if top == "interp":
            room = rest.partition(".")[0]
            rooms.add(room if room in ROOMS else "evaluation")
    return rooms


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_upwards(module):
    room = Path(module).parts[0].removesuffix(".py")
    assert room in ROOMS, f"the room {room!r} has no place in the order"
    assert rooms_of(HOME / module) <= {*ROOMS[: ROOMS.index(room) + 1]}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Files that import each other in a circle, [] where there are none."""
    done: set[str] = set()

    def follow(name: str, way: list[str]) -> list[str]:
        if name in way:
            return way[way.index(name) :]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if cycle := follow(other, [*way, name]):
                return cycle
        done.add(name)
        return []

    return next((cycle for name in graph if (cycle := follow(name, []))), [])


def test_circles_are_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_there_is_no_circle_of_files():
    assert circle({name: imports_of(path) for name, path in FILES.items()}) == []


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("recovery")])
def test_the_heart_knows_no_files_plots_or_training(module):
    assert not rooms_of(HOME / module) & {"results", "figures", "unlearning", "launch"}
    tops = {name.partition(".")[0] for name in imported((HOME / module).read_text("utf-8"))}
    assert not tops & {"pathlib", "pyarrow", "plotly", "os", "io", "tyro", "matplotlib"}


@pytest.mark.parametrize("module", MODULES)
def test_nothing_depends_on_tests_experiments_or_notebooks(module):
    tops = {name.partition(".")[0] for name in imported((HOME / module).read_text("utf-8"))}
    assert not tops & {"tests", "experiments", "scripts", "notebooks", "pytest"}


# Doors


def sources() -> Iterator[tuple[str, str | None, str]]:
    """Where it stands, the room whose files it may import, and the code, of all that use doors."""
    for folder in ("tests", "experiments", "scripts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).parts
            own = parts[1] if parts[0] == "tests" and len(parts) == 3 else None
            yield str(path.relative_to(ROOT)), own, path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                lines = [
                    line for line in cell["source"] if not line.lstrip().startswith(("%", "!"))
                ]
                yield path.name, None, "".join(lines)
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        for block in re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
            # A block that shows a file of the package may do what that file may.
            shown = re.match(r"# interp/(\w+)/", block)
            yield path.name, shown and shown[1], block


def past_doors(source: str, own: str | None) -> list[str]:
    """The imports of a file inside a package other than `own`."""
    modules = {dotted(path) for path in HOME.rglob("*.py")}
    past = []
    for name in sorted(imported(source)):
        top, *rest = name.split(".")
        is_foreign = top == "interp" and rest and rest[0] in PACKAGES and rest[0] != own
        if is_foreign and (len(rest) > 2 or (name in modules and len(rest) == 2)):
            past.append(name)
    return past


def test_imports_past_doors_are_seen():
    code = "import interp\nfrom interp.models.loading import load\nfrom interp.recovery import Pair"
    assert past_doors(code, None) == ["interp.models.loading.load"]
    assert past_doors(code, "models") == []
    assert past_doors("from interp.models import loading", None) == ["interp.models.loading"]


def test_others_come_in_by_the_doors():
    past = {where: names for where, own, code in sources() if (names := past_doors(code, own))}
    assert past == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_door_opens(package):
    """Every name that it promises is there, and none of a lazy one hides behind a file."""
    door = import_module(f"interp.{package}")
    folder = HOME / package
    is_lazy = (folder / "__init__.pyi").exists()
    files = {path.stem for path in folder.iterdir()} if is_lazy else set()
    assert not files & {*door.__all__}
    for name in door.__all__:
        getattr(door, name)


# Words


def undefined(source: str, names: set[str]) -> set[str]:
    """Names that a module's code reads and that nobody defines; annotations are not code."""
    found, codes = set(), [compile(source, "module", "exec")]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        found |= {
            step.argval
            for step in dis.get_instructions(code)
            if step.opname == "LOAD_GLOBAL" and step.argval not in names
        }
    return found - set(dir(builtins))


def test_names_that_are_not_defined_are_seen():
    source = "import a\ndef f(x: 'shape'):\n    return [g(y) for y in x], a, len(x)\n"
    assert undefined(source, {"a", "f"}) == {"g"}


# Doors are lazy, and to import a main is to run it.
@pytest.mark.parametrize("module", [name for name in MODULES if "__" not in name])
def test_every_name_is_defined(module):
    # Linters cannot say it: to them, shapes in annotations are names that nobody defines.
    path = HOME / module
    names = set(vars(import_module(dotted(path))))
    assert undefined(path.read_text(encoding="utf-8"), names) == set()


def definitions() -> Iterator[tuple[str, ast.AST]]:
    """Modules, classes and functions of the library and the experiments, tests left out."""
    for name, path in FILES.items():
        if not path.name.startswith("test_"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    yield name, node


def test_a_class_name_means_one_thing():
    """Each paper's settings are its `Config`; else no name stands for two things."""
    names = Counter(
        node.name
        for _, node in definitions()
        if isinstance(node, ast.ClassDef) and node.name != "Config"
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_docstrings_do_not_begin_with_an_article_or_a_question():
    """At most one in ten; ruff's D401 sees to it that those of functions begin with a verb."""
    first = [
        (docstring.split(maxsplit=1) or [""])[0]
        for name, node in definitions()
        if name.startswith("interp") and (docstring := ast.get_docstring(node))  # pyright: ignore
    ]
    weak = sum(word in {"The", "A", "An", "What", "How", "Whether"} for word in first)
    assert len(first) > 1000
    assert weak <= len(first) / 10, f"{weak} of {len(first)}"


# What an import brings

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
        assert getattr(interp, name).__name__.removeprefix("interp.") == name
    with pytest.raises(AttributeError, match="no attribute 'recover'"):
        interp.recover  # noqa: B018


def test_importing_has_no_effects():
    done = python("import interp.cli, interp.launch, interp.figures; print('imported')")
    assert (done.stdout, done.stderr) == ("imported\n", "")
