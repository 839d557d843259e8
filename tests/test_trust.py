"""No code of a checkpoint runs unless a person asked for it: every reader is told so.

transformers asks on the terminal where it is not told, and a "y" there runs what was downloaded.
"""

from __future__ import annotations

import ast

from tests.helpers import ROOT

WITHOUT_CODE = {"GenerationConfig", "PeftConfig"}
"""Classes that read plain settings and know no such argument."""


def untold(source: str) -> list[str]:
    """The calls of readers in a source that do not say whether code is trusted."""
    calls = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        reader = ast.unparse(node.func)
        owner, _, name = reader.rpartition(".")
        if name in {"from_pretrained", "from_config", "pipeline"} and owner not in WITHOUT_CODE:
            told = {keyword.arg for keyword in node.keywords}
            calls += [f"line {node.lineno}: {reader}"] * ("trust_remote_code" not in told)
    return calls


def test_untold_calls_are_seen():
    assert untold("AutoConfig.from_pretrained(d)") == ["line 1: AutoConfig.from_pretrained"]
    assert untold("AutoModelForCausalLM.from_config(c, dtype=x)")
    assert untold("m = model_class.from_pretrained(d, **settings)")
    assert untold("transformers.pipeline('text-generation')")
    assert untold("AutoTokenizer.from_pretrained(d, trust_remote_code=False)") == []
    assert untold("GenerationConfig.from_pretrained(d)") == []


def test_every_reader_is_told_whether_code_is_trusted():
    files = [
        path
        for folder in ("interp", "experiments", "scripts")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not path.name.startswith("test_")
    ]
    assert len(files) > 100
    found = {str(path.relative_to(ROOT)): untold(path.read_text("utf-8")) for path in files}
    assert {place: calls for place, calls in found.items() if calls} == {}
