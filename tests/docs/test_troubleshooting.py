"""The sentences that the document explains are those of the program."""

import ast
import re
from pathlib import Path

import pytest

from clsd_train import run_folder

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
SENTENCES = re.findall(r"\*\*`([^`]+)`\*\*", " ".join(DOCUMENT.split()))
#: Said by argparse or in C++.
ELSEWHERE = ("unrecognized arguments", "CLSD_FAST_ISA")


def texts_of(path: Path) -> list[str]:
    """Every text of a source file, with ... for what is put into it."""
    texts = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            texts.append("".join(map(_piece, node.values)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return texts


def _piece(part: ast.expr) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    # The names of a run's files are constants.
    assert isinstance(part, ast.FormattedValue)
    return str(getattr(run_folder, ast.unparse(part.value), "..."))


TEXTS = "\n".join(
    text
    for folder in ("clsd_fast", "python/clsd_train")
    for path in (ROOT / folder).rglob("*.py")
    for text in texts_of(path)
)


@pytest.mark.parametrize("sentence", SENTENCES)
def test_the_program_says_so(sentence):
    if sentence.startswith(ELSEWHERE):
        return
    pieces = [piece.strip(" :;,()") for piece in re.split(r"\.\.\.(?:/[\w.]+)?|: ", sentence)]
    for piece in pieces:
        assert piece in TEXTS, piece


def test_there_are_sentences():
    assert len(SENTENCES) > 25
    assert "a sentence that nothing says" not in TEXTS
