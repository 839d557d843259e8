"""Hooks of mkdocs: links from the guides to files outside docs/, and the reference's pages.

1. A link such as `../figures/demo/heatmap.png` leads to the file on a code host. For the site the
   file is copied into `files/`, and the link leads to the copy. A link to a file that is not there
   stays as it is: it is broken, and a strict build fails.
2. The repository's README becomes the site's page `start.md`.
3. `api/` gets a page for the public face, `interp.NAME`, and one per room of the package, with the
   docstrings of all its modules.
"""

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "interp"

ROOMS = (
    "models",
    "data",
    "unlearning",
    "recovery",
    "behaviour",
    "launch",
    "pipelines",
    "figures",
    "report",
)
"""The packages that have a page in the reference, from the bottom up."""

_LINK = re.compile(r"(?<=\]\()\.\./([^)#\s]+)(#[^)\s]*)?(?=\))")
_README_LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)\s]+)(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made, and copies of what the guides link to outside docs/."""
    made = {"start.md": _start(), "api/face.md": _face()}
    made |= {f"api/{room}.md": _room(room) for room in ROOMS}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    texts = [page.content_string for page in files.documentation_pages()]
    for target in sorted({path for text in texts for path, _ in _LINK.findall(text)}):
        path = ROOT / target
        if path.is_file() and target != "README.md":
            files.append(File.generated(config, _copy_of(target), content=path.read_bytes()))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Let links out of docs/ lead to what the site has of them."""

    def replaced(match: re.Match[str]) -> str:
        if match[1] == "README.md":
            return f"start.md{match[2] or ''}"
        return _copy_of(match[1]) if (ROOT / match[1]).is_file() else match[0]

    return _LINK.sub(replaced, markdown)


def _copy_of(target: str) -> str:
    # A browser shows code and tables where they are text.
    return f"files/{target}" if Path(target).suffix == ".png" else f"files/{target}.txt"


def _start() -> str:
    """Return the README with its links as from a page in docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return _README_LINK.sub(lambda match: _from_docs(match[1]), text)


def _from_docs(target: str) -> str:
    return target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}"


def _face() -> str:
    """Return a page of the names of `interp`, each under the name that users call it by."""
    lines = ["# interp", "", "The public face: `import interp`, then `interp.NAME`.", ""]
    homes = {}
    for node in ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module != "interp":
            homes |= {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for name, home in sorted(homes.items()):
        # The room's page is the one that other pages' references lead to.
        options = [f"heading: interp.{name}", "skip_local_inventory: true"]
        lines += [f"::: {home}", "    options:", *(f"      {each}" for each in options), ""]
    return "\n".join(lines)


def _room(room: str) -> str:
    """Return a page of a package's modules, the package's own docstring first."""
    lines = [f"# interp.{room}", ""]
    for path in sorted((PACKAGE / room).rglob("*.py")):
        if path.name == "__init__.py":
            continue
        name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        lines += [f"::: {name}", ""]
    return "\n".join(lines)
