"""Links, commands and names in the README and the documents lead somewhere."""

import contextlib
import importlib.util
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import clsd_fast
from clsd_train import cli
from clsd_train.config import load_config

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
FOLDERS = (
    "csrc",
    "cmake",
    "clsd_fast",
    "python",
    "tests",
    "benchmarks",
    "examples",
    "tools",
    "docs",
)
#: What tools make in folders, and not people.
MADE = ("__pycache__", "build")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def folders() -> list[str]:
    found = []
    for top in FOLDERS:
        for path, names, _ in os.walk(ROOT / top):
            names[:] = [name for name in names if name not in MADE and name[0] != "."]
            found.append(Path(path).relative_to(ROOT).as_posix())
    return found


@cache
def basenames() -> set[str]:
    return {path.name for top in FOLDERS for path in (ROOT / top).rglob("*.*")}


def prose(document: Path) -> str:
    return FENCE.sub("", document.read_text())


def code(document: Path) -> list[str]:
    """The lines of code blocks, and what is in backticks."""
    text = prose(document)
    blocks = re.sub(r"\\\n\s+", "", "\n".join(re.findall(r"^    (\S.*)$", text, re.MULTILINE)))
    paragraphs = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    spans = re.findall(r"`([^`]+)`", paragraphs)
    return [*blocks.splitlines(), *(" ".join(span.split()) for span in spans)]


def commands(document: Path, *programs: str) -> list[list[str]]:
    """The arguments of each call of one of the programs, the program first."""
    calls = []
    for line in code(document):
        line = re.sub(r"\s#.*|[\[\]]", "", line)
        with contextlib.suppress(ValueError):  # an apostrophe: no command
            words = shlex.split(line)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if len(words) > 1 and words[0] in programs:
                calls.append(words)
    return calls


def each(*programs: str) -> list:
    """A parameter for each such call in any document."""
    calls = [(document, words) for document in DOCUMENTS for words in commands(document, *programs)]
    return [pytest.param(words, id=f"{document.stem}: {shlex.join(words)}")
            for document, words in calls]  # fmt: skip


def options(words: list[str]) -> set[str]:
    return {word.split("=")[0] for word in words if word.startswith("--")}


def flags_of(help_text: str) -> set[str]:
    return set(re.findall(r"--[a-z][a-z-]*", help_text))


@cache
def program_flags(path: Path) -> set[str]:
    """What the program's --help names. It runs here, where PyTorch is imported already."""
    before, output = set(sys.modules), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(sys, "argv", [str(path), "--help"])
        patch.syspath_prepend(str(path.parent))
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(path), run_name="__main__")
    assert stop.value.code == 0
    for name in set(sys.modules) - before:
        if str(ROOT) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    return flags_of(output.getvalue())


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_links(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", prose(file), re.MULTILINE)
            assert anchor in map(slug, headings), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_paths(document):
    """Paths from the top, and names of source files wherever they are."""
    for word in {word for line in code(document) for word in re.split(r"[\s,;=()]+", line)}:
        if "<" in word or "{" in word:  # stands for many
            continue
        if word.split("/")[0] in FOLDERS and "/" in word:
            assert list(ROOT.glob(word)), word
        elif re.fullmatch(r"[\w-]+\.(py|h|cpp|cu|cuh|sh)", word):
            assert word in basenames() or (ROOT / word).exists(), word


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_names(document):
    for name in re.findall(r"\bclsd_fast\.(\w+(?:\.\w+)*)", "\n".join(code(document))):
        first, *rest = name.split(".")
        if (ROOT / "clsd_fast" / f"{first}.py").exists():
            importlib.import_module(f"clsd_fast.{first}")
        value = clsd_fast
        for part in (first, *rest):
            value = getattr(value, part)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_environment_variables_are_read_somewhere(document):
    sources = [ROOT / "setup.py", ROOT / "Makefile"]
    sources += [path for top in FOLDERS for path in (ROOT / top).rglob("*.*")
                if path.suffix in (".py", ".cpp") and path != Path(__file__)]  # fmt: skip
    text = "\n".join(path.read_text() for path in sources)
    names = set(re.findall(r"\bCLSD_[A-Z_]+", document.read_text()))
    assert {name for name in names if not re.search(rf"\b{name}\b", text)} == set()


@pytest.mark.parametrize(
    "text, check",
    [
        ("[a](missing.md)", test_links),
        ("[a](#missing)", test_links),
        ("`csrc/cpu/missing.h`", test_paths),
        ("`missing.cpp`", test_paths),
        ("    python benchmarks/missing.py", test_paths),
        ("`clsd_fast.missing`", test_names),
        ("`CLSD_MISSING=on`", test_environment_variables_are_read_somewhere),
    ],
)
def test_what_leads_nowhere_is_found(tmp_path, text, check):
    document = tmp_path / "document.md"
    document.write_text(f"# Title\n\n{text}\n")
    with pytest.raises((AssertionError, AttributeError)):
        check(document)


@pytest.mark.parametrize("words", each("make"))
def test_make_targets(words):
    rules = re.findall(r"^([a-z][^:=]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = {name for rule in rules for name in rule.split()}
    assert {word for word in words[1:] if "=" not in word} <= targets


@pytest.mark.parametrize("words", each("python", "benchmarks/gpu.sh", "ops.py", "step.py"))
def test_programs_have_their_flags(words):
    if words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2])
        return
    name = words[words[0] == "python"]
    path = ROOT / ("benchmarks" if "/" not in name else "") / name
    assert path.is_file()
    if path.suffix == ".sh":
        assert options(words) <= flags_of(path.read_text())
    elif options(words):
        assert options(words) <= program_flags(path)


@pytest.mark.parametrize("words", each("pytest"))
def test_paths_of_pytest(words):
    paths = [word for word in words[1:] if "/" in word]
    assert all((ROOT / path).exists() for path in paths)


@pytest.mark.parametrize("words", each("clsd"))
def test_subcommands(words, capsys):
    assert words[1] in cli.COMMANDS
    with pytest.raises(SystemExit) as stop:
        cli.main([words[1], "--help"])
    assert stop.value.code == 0
    assert options(words) <= flags_of(capsys.readouterr().out)
    if words[1] in ("train", "config"):
        load_config(None, [word for word in words[2:] if "=" in word and word[0] != "-"])


def test_make_help_has_a_line_for_every_target():
    if shutil.which("make") is None:
        pytest.skip("needs make")
    phony = re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = {name for line in phony for name in line.replace("\\\n", " ").split()}
    shown = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert {line.split()[0] for line in shown.stdout.splitlines()} == targets
    assert all(len(line.split()) > 1 for line in shown.stdout.splitlines())


def test_the_readme_names_everything_public():
    table = re.findall(r"^\| (.*?[^\\]) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    names = re.findall(r"`([\w.]+)[(`]", "\n".join(table))
    for name in names:
        if name != "clsd_fast.":
            module, _, member = name.rpartition(".")
            assert hasattr(clsd_fast.nn if module == "nn" else clsd_fast, member), name
    assert set(clsd_fast.__all__) - set(names) == {"CLSDOutput", "nn", "ops"}


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "edsr.pt").is_file()


def test_every_folder_has_its_line():
    document = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `([\w/]+)` \|", document, re.MULTILINE)
    assert sorted(rows) == sorted(set(rows))
    assert set(rows) == set(folders())
