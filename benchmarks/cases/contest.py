"""What the subjects have in common: contenders, and the check that each passes before it is timed.

A subject is a module with tables of cases (``TABLES``) and a ``Contest``. A case has a ``title``,
``modes`` and, for each mode, the ``names`` of its contenders.
"""

import multiprocessing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any, NamedTuple

import measure
import numpy
import torch
from torch import Tensor, nn

FORWARD, FORWARD_BACKWARD = "forward", "forward_backward"


class Contender(NamedTuple):
    """One implementation of a case in a mode."""

    #: What is timed: takes the number of the call, to rotate its inputs.
    call: Callable[[int], object]
    #: What is checked, of the first inputs: values, then gradients.
    results: Callable[[], list[Tensor]]


class Contest(ABC):
    """A case in one mode, and contenders with the same weights and inputs.

    Args:
        case: of the subject.
        mode: one of the case's.
        dtype: of the contenders.
    """

    def __init__(self, case: Any, mode: str, dtype: torch.dtype = torch.float32) -> None:
        self.case, self.mode, self.dtype = case, mode, dtype

    @property
    def title(self) -> str:
        return f"{self.case.title} {self.mode}"

    @property
    def facts(self) -> dict[str, Any]:
        """Case and mode, for a report."""
        return {**self.case._asdict(), "mode": self.mode}

    @abstractmethod
    def contender(self, name: str) -> Contender:
        """A new one, of a name that the case has for the mode."""

    @abstractmethod
    def reference(self) -> list[Tensor]:
        """The results by plain PyTorch in float64."""

    @cached_property
    def expected(self) -> tuple[list[Tensor], list[Tensor]]:
        """The results by plain PyTorch, in float64 and in the dtype of the contenders."""
        return self.reference(), self.contender("eager").results()

    def check(self, results: Mapping[str, Callable[[], list[Tensor]]]) -> float:
        """The largest `measure.error_over_bound`; ends the program if one is above the limit.

        Args:
            results: of the contenders to check, by their names.
        """
        figures = []
        for name, function in results.items():
            figures.append(measure.error_over_bound(function(), *self.expected, self.dtype))
            measure.gate(f"{self.title}, {name}", figures[-1])
        return max(figures)


def make_call(
    function: Callable[..., Tensor],
    inputs: Sequence[Sequence[Tensor]],
    grads: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    mode: str,
) -> Callable[[int], list[Tensor]]:
    """A function from the number of a call to the results of the mode.

    Args:
        function: of one element of inputs.
        inputs: calls rotate over them.
        grads: of each output; of a scalar None, which is 1. Empty for ``forward``.
        parameters: whose gradients are results too.
        mode: ``forward``, without recording a gradient, or ``forward_backward``.
    """
    count = len(inputs)

    def forward(index: int) -> list[Tensor]:
        with torch.no_grad():
            return [function(*inputs[index % count])]

    def forward_backward(index: int) -> list[Tensor]:
        leaves, grad = inputs[index % count], grads[index % count]
        output = function(*leaves)
        return [output.detach(), *torch.autograd.grad(output, [*leaves, *parameters], grad)]

    return forward if mode == FORWARD else forward_backward


def our_results(contenders: Mapping[str, Contender]) -> dict[str, Callable[[], list[Tensor]]]:
    """For `Contest.check`: those that a program checks."""
    return {name: c.results for name, c in contenders.items() if name.startswith("ours")}


def calls(contenders: Mapping[str, Contender]) -> dict[str, Callable[[int], object]]:
    """For `measure.interleave`."""
    return {name: contender.call for name, contender in contenders.items()}


def compiled(function: Callable | nn.Module) -> Callable:
    """torch.compile of it, without what was compiled before.

    Of one function, PyTorch compiles only some versions and runs all further ones uncompiled.
    """
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


def compile_failure() -> str | None:
    """Why torch.compile does not work here, if so. A process of its own tries: it may crash."""
    try:
        return measure.in_new_process(_compile_error)
    except BrokenProcessPool:
        return "torch.compile: the process that tried it crashed"


def _compile_error() -> str | None:
    layer = nn.Conv2d(3, 4, 3)
    x = torch.ones(1, 3, 8, 8, requires_grad=True)
    try:
        torch.compile(lambda x: layer(x).relu() + 1)(x).sum().backward()
    except Exception as error:  # whatever it is, the others are timed
        return f"torch.compile: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return None


@contextmanager
def in_own_process(make: Callable[..., Contender], *args: object) -> Iterator[Contender]:
    """The contender ``make(*args)`` in a new process: it may crash, and costs 0.1 ms a call more.

    What is sent there is pickled: a function of a module, and arguments that can be hashed.

    Raises:
        BrokenProcessPool: from the contender's functions, if the process has crashed.
    """
    pool = ProcessPoolExecutor(
        max_workers=1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=measure.prepare,
        initargs=(torch.get_num_threads(),),
    )

    def call(index: int) -> None:
        pool.submit(_call, index, make, *args).result()

    def results() -> list[Tensor]:
        return [torch.from_numpy(array) for array in pool.submit(_results, make, *args).result()]

    with pool:
        yield Contender(call, results)


@cache
def _made(make: Callable[..., Contender], *args: object) -> Contender:
    return make(*args)


def _call(index: int, make: Callable[..., Contender], *args: object) -> None:
    _made(make, *args).call(index)


def _results(make: Callable[..., Contender], *args: object) -> list[numpy.ndarray]:
    """As arrays, which are sent by value: tensors would lie in memory that the processes share."""
    return [tensor.numpy() for tensor in _made(make, *args).results()]
