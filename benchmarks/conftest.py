"""`pytest benchmarks/`: every contender of every case against plain PyTorch, by pytest-benchmark.

    pytest benchmarks/ [--table tiny|quick|full] [--no-compile] [--threads 2] [-k residual_block]

A table of the report is one operator, shape and mode. Each contender is held against plain PyTorch
in float64 before it is timed, as in the programs: `ops.py`, `contrastive.py` and `step.py` time the
same cases interleaved, and the documents' figures are theirs. Freed memory is reused, and inputs
change from call to call. ``--benchmark-json``, ``--benchmark-autosave``, ``--benchmark-compare``
and all of pytest-benchmark's other options work as everywhere.
"""

import itertools
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import Any

import measure
import pytest
import torch
from cases import contest, images


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("clsd-fast")
    group.addoption("--table", default="quick", choices=images.TABLES, help="cases to time")
    group.addoption("--no-compile", action="store_true", help="leave torch.compile out")
    group.addoption("--threads", type=int, default=2, help="of PyTorch")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The contenders of every case of the module's SUBJECT, one after the other."""
    subject, option = metafunc.module.SUBJECT, metafunc.config.getoption
    entries = [
        pytest.param((subject, case, mode), name, id=f"{case.title} {mode}, {name}")
        for case in subject.TABLES.get(option("table"), list)()
        for mode in case.modes
        for name in case.names(mode, not option("no_compile"))
    ]
    metafunc.parametrize(("rivals", "name"), entries, indirect=["rivals"])


@lru_cache(maxsize=1)
def make_rivals(subject: ModuleType, case: Any, mode: str) -> contest.Contest:
    """Kept for the next contender, and with it the expected results."""
    return subject.Contest(case, mode)


@pytest.fixture(scope="session")
def environment(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What figures depend on."""
    measure.prepare(request.config.getoption("threads"))
    return measure.environment(torch.device("cpu"))


@pytest.fixture(scope="session")
def compile_failure() -> str | None:
    return contest.compile_failure()


@pytest.fixture
def rivals(request: pytest.FixtureRequest, environment: dict[str, Any]) -> contest.Contest:
    return make_rivals(*request.param)


@pytest.fixture(autouse=True)
def skip_uncompiled(request: pytest.FixtureRequest, name: str) -> None:
    """Skips contenders that torch.compile makes where it does not work."""
    if name.startswith("compile"):
        failure = request.getfixturevalue("compile_failure")
        if failure is not None:
            pytest.skip(failure)


@pytest.fixture
def compete(benchmark, rivals: contest.Contest, name: str, environment: dict[str, Any]) -> Callable:
    """Checks a contender, then times it."""

    def compete(contender: contest.Contender) -> None:
        figure = rivals.check({name: contender.results})
        contender.call(1)  # has its memory in place
        benchmark.group, benchmark.name = rivals.title, name
        facts = {**rivals.facts, "implementation": name, "correctness": figure, **environment}
        benchmark.extra_info.update(facts)
        numbers = itertools.count()
        benchmark(lambda: contender.call(next(numbers)))

    return compete
