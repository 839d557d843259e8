"""The documentation holds: every block runs, and who follows a guide touches two files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import yaml

from interp import cli
from interp.data import make_texts
from interp.unlearning import METHODS, OBJECTIVES
from tests.helpers.doc_pages import (
    PAGES,
    ROOT,
    Block,
    applied,
    blocks,
    commands,
    file_of,
    read,
    smaller,
)
from tests.helpers.tiny_models import save, tiny, tokenizer

OTHER_PROGRAMS = {"make", "pytest", "pip", "python", "apt-get"}
RAY_AND_SLURM = ("docs/clusters.md",)
"""Its commands start clusters: read by the shell and by the command line, not run."""
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} </s> {% endfor %}assistant :"
)
NO_GUIDES = ("CONTRIBUTING.md", "CHANGELOG.md", "figures/README.md")
"""Pages whose links are followed, too."""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """What the pages call models and files, tiny."""
    import interp

    home = tmp_path_factory.mktemp("models")
    for name, seed in (
        ("models/vanilla", 0),
        ("models/taught", 0),
        ("models/unlearned", 1),
        ("models/untaught", 2),
        ("runs/demo/unlearned", 1),
    ):
        model = tiny("llama", seed=seed, max_position_embeddings=256)
        chatting = tokenizer()
        chatting.chat_template = CHAT_TEMPLATE
        save(interp.LanguageModel(model.model, chatting), home / name)
    for name, relation in (("forget", "capitals"), ("retain", "currencies")):
        found = make_texts(interp.queries(relation, languages=["en"], limit=4))
        rows = [{"prompt": each.prompt, "answer": each.answer, "language": "en"} for each in found]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (home / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return home


@pytest.fixture
def home(models, tmp_path, monkeypatch) -> Iterator[Path]:
    """A directory of its own for a page, with the models."""
    place = tmp_path / "home"
    shutil.copytree(models, place)
    monkeypatch.chdir(place)
    # What a page registers is known to it alone. (All methods are: `methods` imports them.)
    with mock.patch.dict(OBJECTIVES), mock.patch.dict(METHODS):
        yield place


def on_tiny(text: str) -> str:
    """The embedded model is a tiny one here."""
    return text.replace("gemma-3-270m", "models/vanilla")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs(page, home, tmp_path_factory):
    """From top to bottom; Python blocks share their names, as in a notebook."""
    names: dict[str, object] = {}
    for block in blocks(page):
        where = f"{page}, line {block.line}"
        if block.kind == "python":
            code = compile(on_tiny(block.text), where, "exec")
            if not (block.needs or block.changed or page in RAY_AND_SLURM):
                exec(code, names)
        elif block.kind == "bash":
            check_bash(block, page, tmp_path_factory.getbasetemp() / "done")
        elif block.kind == "json":
            json.loads(block.text)
        elif block.kind == "toml":
            tomllib.loads(block.text)
        else:
            assert block.kind in {"diff", "bibtex", "text"}, (
                f"{where}: a block of the kind {block.kind!r}"
            )


def check_bash(block: Block, page: str, done: Path) -> None:
    """Read a bash block as the shell and the programs do, and run what is ours."""
    where = f"{page}, line {block.line}"
    shell = subprocess.run(
        ["bash", "-n"], input=block.text, capture_output=True, text=True, check=False
    )
    assert shell.returncode == 0, f"{where}: {shell.stderr}"
    for words in commands(block):
        program = next((word for word in words if "=" not in word), "")
        words = words[words.index(program) + 1 :] if program else []
        if program == "interp":
            read([on_tiny(word) for word in words])
            if not (block.needs or block.changed or page in RAY_AND_SLURM):
                do(smaller([on_tiny(word) for word in words]), done)
        elif program in OTHER_PROGRAMS:
            check_program(program, words, where)
        else:
            assert page in RAY_AND_SLURM, f"{where}: the program {program!r}"


def do(words: list[str], done: Path) -> None:
    """Run a command; a model that the same command made for another page is taken from there."""
    if words[0] not in ("contaminate", "unlearn"):
        cli.main(words)
        return
    made = Path(words[words.index("--out") + 1])
    kept = done / hashlib.sha256(shlex.join(words).encode()).hexdigest()
    if not kept.exists():
        cli.main(words)
        shutil.copytree(made, kept)
    elif not made.exists():
        shutil.copytree(kept, made)


def check_program(program: str, words: list[str], where: str) -> None:
    """That what another program is told to do is there."""
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert words[0] in targets, where
    elif program == "pytest":
        assert (ROOT / words[0]).is_file(), where
    elif program == "pip":
        extras = set(re.findall(r"\[([\w,]+)\]", " ".join(words))[0].split(","))
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert extras <= project["optional-dependencies"].keys(), where
    elif program == "python":
        name = words[1].replace(".", "/") + ".py" if words[0] == "-m" else words[0]
        script = (ROOT / name).read_text(encoding="utf-8")
        for option in (word for word in words if word.startswith("--")):
            assert f'"{option}"' in script or f"{option[2:]}:" in script, f"{where}: {option}"


def test_a_command_that_is_wrong_is_noticed(capsys):
    with pytest.raises(SystemExit):
        read(["krs", "runs/x", "--colour", "red"])
    assert "colour" in capsys.readouterr().err
    meant = read(["sweep", "…", "--launcher", "ray", "--num-workers", "4"])
    assert (meant["launcher"], meant["num_workers"], meant["unlearned"]) == ("ray", 4, ("U",))


def test_smaller_commands_ask_for_the_same():
    words = shlex.split("unlearn --vanilla V --steps 9 --stops a<1 b<2 --parameters lora --out O")
    assert shlex.join(smaller(words)) == (
        "unlearn --vanilla V --stops 'a<1' 'b<2' --parameters lora --out O --steps 1 "
        "--batch-size 2 --formats html --lora-rank 2"
    )


# Following a guide, on a copy of the package


@pytest.fixture
def copy(tmp_path) -> Path:
    """The package and its tests, to be changed."""
    place = tmp_path / "copy"
    for name in ("interp", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, place / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", place)
    return place


def followed(page: str, copy: Path) -> set[str]:
    """Change a copy of the package as a page says; the files that were touched."""
    touched = set()
    for block in blocks(page):
        if path := file_of(block):
            touched.add(path)
            target = copy / path
            if block.kind == "diff":
                text = applied(block.text, target.read_text(encoding="utf-8"))
            else:
                assert not target.exists()
                text = block.text
            target.write_text(text, encoding="utf-8")
    return touched


def run_there(copy: Path, home: Path, *arguments: str) -> str:
    """Run Python on the changed copy, and give what it prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def done_there(page: str, copy: Path, home: Path) -> tuple[str, int]:
    """Run all blocks below a page's diffs on the copy.

    Returns:
        What the commands and the Python blocks print, and how many of the project's tests passed.
    """
    code, passed = [], 0
    for block in blocks(page):
        if block.changed and block.kind == "python":
            code.append(on_tiny(block.text))
        for words in commands(block) if block.changed and block.kind == "bash" else ():
            if words[0] == "pytest":
                options = ["-q", "-p", "no:cacheprovider", f"--rootdir={copy}"]
                said = run_there(copy, copy, "-m", "pytest", *options, *words[1:])
                found = re.search(r"(\d+) passed", said)
                assert found, said
                passed += int(found[1])
            elif words[0] == "interp":
                asked = smaller([on_tiny(word) for word in words[1:]])
                code.append(f"from interp.cli import main\nmain({asked!r})")
    return run_there(copy, home, "-c", "\n".join(code)), passed


def test_a_language_is_added_by_the_guide(copy, home):
    page = "docs/own-language.md"
    assert followed(page, copy) == {"interp/languages.py", "interp/data/templates/eo.toml"}
    said, passed = done_there(page, copy, home)
    assert passed == 7
    # Germany's germana and Spain's hispana could be copied from the question.
    assert "{'capital': 24, 'currency': 24, 'official language': 6, 'continent': 20}" in said
    written = (home / "queries.jsonl").read_text(encoding="utf-8")
    queries = [json.loads(line) for line in written.splitlines()]
    (france,) = (q for q in queries if (q["id"], q["language"]) == ("capital-FR", "eo"))
    assert france["prompt"] == "Demando: Kiu urbo estas la ĉefurbo de Francio?\nRespondo:"
    assert (france["answer"], france["aliases"]) == ("Parizo", ["Paris"])


def test_a_method_is_added_by_the_guide(copy, home):
    page = "docs/own-method.md"
    assert followed(page, copy) == {"interp/unlearning/objectives/unlikelihood.py"}
    said, passed = done_there(page, copy, home)
    assert passed == 9
    assert "unlikelihood: unlearned in German" in said
    card = json.loads((home / "runs/de-unlikelihood/unlearning.json").read_text(encoding="utf-8"))
    assert (card["method"], card["settings"]["settings"]) == ("unlikelihood", {"alpha": 2.0})


# What stands beside the code


def test_every_public_name_is_in_the_reference():
    """Of the site, which `make docs` builds: what its pages are made of."""
    made = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
    import interp

    face = made["_face"]()
    rooms = {path.parent.name for path in (ROOT / "interp").glob("*/__init__.py")}
    assert {*made["ROOMS"], "cli"} == rooms
    for name in interp.__all__:
        assert f"heading: interp.{name}\n" in face or name in rooms
    assert "\n::: interp.recovery.krs\n" in made["_room"]("recovery")


def anchors(path: Path) -> set[str]:
    """What can be linked to in a page: its headings, as code hosts write them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", [*PAGES, *NO_GUIDES])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            place = (ROOT / page).parent / path if path else ROOT / page
            assert place.exists(), f"{page}: {target}"
            assert not anchor or anchor in anchors(place), f"{page}: {target}"


def test_every_guide_is_listed():
    for index in ("README.md", "docs/README.md"):
        text = (ROOT / index).read_text(encoding="utf-8")
        for page in (ROOT / "docs").glob("*.md"):
            assert page.name == "README.md" or f"{page.name})" in text, f"{index}: {page.name}"


def test_the_citation_file_is_that_of_this_version():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (found["version"], found["license"]) == (project["version"], project["license"])
    cited = (ROOT / "docs" / "citing.md").read_text(encoding="utf-8")
    for paper in found["references"]:
        assert paper["title"] in cited.replace("{", "").replace("}", "")
        assert all(author["family-names"].replace("á", r"{\'a}") in cited or
                   author["family-names"] in cited for author in paper["authors"])  # fmt: skip


def test_the_contributors_guide_names_what_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = {each for each in re.findall(r"`([\w./]+/[\w./]*)`", text) if each != "runs/"}
    made = {"site/"}
    assert len(named) > 25
    assert not [each for each in sorted(named - made) if not (ROOT / each).exists()]


def test_the_fast_tests_are_there():
    (listed,) = re.findall(r"^CHECKED := ((?:.*\\\n)+.*)$", (ROOT / "Makefile").read_text(), re.M)
    checked = listed.replace("\\\n", " ").split()
    assert "tests/test_rooms.py" in checked
    assert not [each for each in checked if not (ROOT / each).is_file()]


def test_what_is_kept_of_studies_is_small():
    for path in (ROOT / "figures").rglob("*"):
        if path.is_file():
            limit = {".png": 230_000}.get(path.suffix, 100_000)
            assert path.suffix in {".png", ".csv", ".md"} or path.name == "study.json", path
            assert path.stat().st_size <= limit, path
