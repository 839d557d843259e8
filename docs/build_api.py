"""The reference `docs/api.md`, made of the docstrings.

    python docs/build_api.py           write it
    python docs/build_api.py --check   exit code 1 if it is not what the docstrings say

The public names of `interp` stand there whole, with their signatures; of every other module its
first sentence and those of its public functions and classes. Nothing is imported.
"""

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "interp"
PAGE = ROOT / "docs" / "api.md"

Definition = ast.FunctionDef | ast.ClassDef

INTRODUCTION = """\
# Reference

Made of the docstrings by `python docs/build_api.py`. First the public face, `interp.NAME`; then
[every module](#modules) by its first sentence. Full docstrings: `help(interp.sweep)`.
"""


def page() -> str:
    """The whole page."""
    home = _public_homes()
    parts = [INTRODUCTION]
    for name, module in sorted(home.items()):
        parts.append(_entry(*_defined(name, module)))
    parts.append("## Modules\n")
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.name not in ("__init__.py", "__main__.py") or len(tree.body) > 1:
            parts.append(_module(path, tree))
    return "\n".join(parts)


def _public_homes() -> dict[str, str]:
    """The modules that define the public names, as `interp/__init__.py` has them."""
    for node in ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOME":
            return ast.literal_eval(node.value)
    raise LookupError("interp/__init__.py has no _HOME")


def _defined(name: str, module: str) -> tuple[Definition, str, Path]:
    """Where a name of the public face is defined: in that module, or where this has it from."""
    path = ROOT / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and name in [each.name for each in node.names]:
            return _defined(name, str(node.module))
    return _definitions(tree)[name], f"interp.{name}", path


def _definitions(tree: ast.Module) -> dict[str, Definition]:
    """A module's public functions and classes."""
    found = (node for node in tree.body if isinstance(node, Definition))
    return {node.name: node for node in found if not node.name.startswith("_")}


def _entry(node: Definition, name: str, path: Path) -> str:
    """A heading, the signature, the docstring, and a class's public methods likewise."""
    source = path.relative_to(ROOT).as_posix()
    lines = [f"## {name}\n", f"[{source}](../{source})\n", _signature(node, name), _doc(node)]
    for method in _methods(node):
        decorators = {ast.unparse(each) for each in method.decorator_list}
        called = f"{node.name}.{method.name}"
        lines += [f"### {called}\n"]
        if not decorators & {"property", "cached_property"}:
            lines += [_signature(method, called)]
        lines += [_doc(method)]
    return "\n".join(lines)


def _methods(node: Definition) -> Iterator[ast.FunctionDef]:
    for each in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(each, ast.FunctionDef) and not each.name.startswith("_"):
            yield each


def _signature(node: Definition, name: str) -> str:
    if isinstance(node, ast.ClassDef):
        init = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
        if not init:
            given = [ast.unparse(each) for each in fields if not ast.unparse(each).startswith("_")]
            return _code(name, ["*", *given] if given else [], "")
        return _code(name, _arguments(init[0])[1:], "")
    arguments = _arguments(node)
    if arguments and arguments[0] in ("self", "cls"):
        arguments = arguments[1:]
    return _code(
        name, arguments, "" if node.returns is None else f" -> {ast.unparse(node.returns)}"
    )


def _arguments(node: ast.FunctionDef) -> list[str]:
    """The arguments as they stand in the signature, one by one."""
    given = node.args
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + list(given.defaults)
    found = [_argument(one, value) for one, value in zip(plain, defaults, strict=True)]
    if given.vararg or given.kwonlyargs:
        found.append(f"*{ast.unparse(given.vararg) if given.vararg else ''}")
    found += [
        _argument(one, value)
        for one, value in zip(given.kwonlyargs, given.kw_defaults, strict=True)
    ]
    return [*found, *([f"**{ast.unparse(given.kwarg)}"] if given.kwarg else [])]


def _argument(one: ast.arg, value: ast.expr | None) -> str:
    return ast.unparse(one) if value is None else f"{ast.unparse(one)} = {ast.unparse(value)}"


def _code(name: str, arguments: list[str], returns: str) -> str:
    whole = f"{name}({', '.join(arguments)}){returns}"
    if len(whole) > 90:
        whole = f"{name}(\n" + "".join(f"    {each},\n" for each in arguments) + f"){returns}"
    return f"```\n{whole}\n```\n"


def _doc(node: Definition) -> str:
    """The docstring; its sections become lists, what is Python in it a block of code."""
    text = inspect.cleandoc(ast.get_docstring(node) or "")
    body, *sections = re.split(r"^(Args|Attributes|Returns|Raises):$", text, flags=re.MULTILINE)
    paragraphs = body.strip().split("\n\n")
    parts = [f"```\n{each}\n```" if _is_code(each) else each for each in paragraphs]
    for title, listed in zip(sections[::2], sections[1::2], strict=True):
        items = inspect.cleandoc(listed)
        if title != "Returns":
            items = re.sub(r"^(\*{0,2}\w+):", r"- `\1`:", items, flags=re.MULTILINE)
        parts += [f"**{title}**", items]
    return "\n\n".join(parts) + "\n"


def _is_code(paragraph: str) -> bool:
    try:
        ast.parse(paragraph)
    except SyntaxError:
        return False
    return bool(re.search(r"[(=\[]", paragraph))


def _module(path: Path, tree: ast.Module) -> str:
    source = path.relative_to(ROOT).as_posix()
    name = source.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    lines = [f"### [{name}](../{source})\n", _first(ast.get_docstring(tree)), ""]
    lines += [
        f"- `{called}`: {_first(ast.get_docstring(node))}"
        for called, node in _definitions(tree).items()
    ]
    return "\n".join(lines).rstrip() + "\n"


def _first(text: str | None) -> str:
    """The first paragraph, on one line."""
    return " ".join((text or "").strip().split("\n\n")[0].split())


if __name__ == "__main__":
    made = page()
    if "--check" in sys.argv[1:]:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == made
        sys.exit(None if same else "docs/api.md is not what the docstrings say: run this script")
    PAGE.write_text(made, encoding="utf-8")
