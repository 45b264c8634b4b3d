"""The public API is frozen: its names and signatures are those of ``signatures.txt``.

A change of that table is a change of the API. ``python tests/library/test_signatures.py`` prints
the table of the package as it is.
"""

import difflib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import clsd_fast

TABLE = Path(__file__).with_name("signatures.txt")
MODULES = (clsd_fast, clsd_fast.nn, clsd_fast.losses)


def table() -> Iterator[str]:
    """Every public function, class and method, and a line for each of its parameters."""
    for module in MODULES:
        for name in sorted(module.__all__):
            member = getattr(module, name)
            if inspect.ismodule(member):
                continue
            yield from entry(f"{module.__name__}.{name}", member)
            owner = member if inspect.isclass(member) else type(member)
            for method, function in sorted(vars(owner).items()):
                if inspect.isfunction(function) and not method.startswith("_"):
                    yield from entry(f"{module.__name__}.{name}.{method}", function)


def entry(name: str, function: Callable) -> Iterator[str]:
    signature = inspect.signature(function)
    yield name
    keyword_only = False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            yield "    *"
        yield f"    {without_modules(str(parameter))}"
    if signature.return_annotation not in (None, signature.empty):
        result = inspect.formatannotation(signature.return_annotation)
        yield f"    -> {without_modules(result)}"


def without_modules(text: str) -> str:
    """``torch.Tensor`` as ``Tensor``: where PyTorch defines its classes is its own affair."""
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", text)


def test_signatures_are_those_of_the_table():
    frozen = TABLE.read_text().splitlines()
    difference = difflib.unified_diff(frozen, list(table()), "frozen", "now", n=3, lineterm="")
    assert not list(difference)


def test_operators_are_public_at_the_top():
    for name in clsd_fast.ops.__all__:
        assert getattr(clsd_fast, name) is getattr(clsd_fast.ops, name)
        assert name in clsd_fast.__all__


if __name__ == "__main__":
    print("\n".join(table()))
