"""Grids of parameters that hold every pair of values, with few combinations."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatch
from functools import partial

import pytest

Combination = tuple[object, ...]
#: The `backend` fixture where native kernels are what is to be tested: the reference is thorough.
NATIVE_FIRST = pytest.mark.parametrize(
    "backend", ["native", pytest.param("reference", marks=pytest.mark.thorough)], indirect=True
)


def pairs(**values: Sequence) -> tuple[list[Combination], int]:
    """Combinations of the parameters' values that hold every pair of two parameters' values.

    Returns:
        The combinations, always the same, and how many of the first hold every single value.
    """
    columns = [range(len(column)) for column in values.values()]
    product = list(itertools.product(*columns))
    first = max(map(len, columns))
    rows = [tuple(number % len(column) for column in columns) for number in range(first)]
    missing = _pairs(product) - _pairs(rows)
    while missing:
        rows.append(max(product, key=lambda row: len(_pairs([row]) & missing)))
        missing -= _pairs(rows[-1:])
    named = [tuple(column[i] for column, i in zip(values.values(), r, strict=True)) for r in rows]
    return named, first


def _pairs(rows: Iterable[tuple[int, ...]]) -> set[tuple]:
    """((parameter, value), (parameter, value)) of every two parameters of the rows."""
    return {pair for row in rows for pair in itertools.combinations(enumerate(row), 2)}


def cover(*, quick: int | None = None, **values: Sequence) -> pytest.MarkDecorator:
    """Parametrize a test by `pairs`; all combinations but the first are `thorough`.

    Args:
        quick: how many are not; by default, those that hold every single value.
        values: of each parameter.
    """
    combinations, first = pairs(**values)
    first = first if quick is None else quick
    parameters = [
        pytest.param(
            *combination,
            id="-".join(map(_word, combination)),
            marks=[] if number < first else pytest.mark.thorough,
        )
        for number, combination in enumerate(combinations)
    ]
    return pytest.mark.parametrize(list(values), parameters)


def cases(check: Callable[..., None], **values: Sequence) -> list:
    """The check with every combination of the values, as parameters of a test."""
    return [
        pytest.param(
            partial(check, **dict(zip(values, combination, strict=True))),
            id=" ".join([check.__name__, *map(_word, combination)]),
        )
        for combination in itertools.product(*values.values())
    ]


def defer(parameters: Iterable, *patterns: str) -> list:
    """The parameters, of which those whose id fits a pattern are `thorough`; each fits some."""
    given = list(parameters)
    for pattern in patterns:
        fitting = {p.id for p in given if fnmatch(p.id, pattern)}
        assert fitting, f"defer: expected an id like {pattern!r}"
        given = [
            pytest.param(*p.values, id=p.id, marks=[*p.marks, pytest.mark.thorough])
            if p.id in fitting
            else p
            for p in given
        ]
    return given


def _word(value: object) -> str:
    return getattr(value, "__name__", str(value))
