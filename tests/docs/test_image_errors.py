"""Every sentence of the modules about images has a place in docs/troubleshooting.md."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("data", "images", "listing", "pairing", "upscale")
HEADINGS = re.findall(
    r"^### (.*)", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE
)


def sentences(module: str) -> list[str]:
    """What a module raises, each with ``...`` for what is filled in."""
    found = []
    for node in ast.walk(ast.parse((ROOT / f"python/clsd_train/{module}.py").read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = [str(p.value) if isinstance(p, ast.Constant) else "..." for p in node.values]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = [node.value]
        else:
            continue
        text = "".join(parts)
        if re.match(r"(data|config|upscale): .*expected ", text):
            found.append(text)
    return found


def expectation(sentence: str) -> str:
    """A pattern for the words from "expected" to "got"."""
    words = sentence[sentence.index("expected ") :].partition(", got")[0]
    return ".+".join(map(re.escape, re.split(r"(?:\.\.\.x?)+", words)))


@pytest.mark.parametrize("module", MODULES)
def test_every_sentence_has_its_entry(module):
    raised = sentences(module)
    assert raised
    for sentence in raised:
        assert any(re.search(expectation(sentence), heading) for heading in HEADINGS), sentence
