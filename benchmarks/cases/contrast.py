"""Contrastive operators: functions of two batches of rows."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import plain
import torch
from torch import Tensor

import clsd_fast
from cases import contest
from cases.contest import FORWARD, FORWARD_BACKWARD, Contender

NUM_INPUTS = 2
#: Of more queries, the first so many are checked.
CHECKED_ROWS = 4096
#: GiB of a table of logits or distances that plain PyTorch is tried with.
LARGEST_TABLE = 1.0


class Case(NamedTuple):
    """An operator and its rows: `heads` batches of `rows` rows and keys of `features`."""

    op: str
    heads: int
    rows: int
    features: int
    metric: str | None = None

    @property
    def title(self) -> str:
        metric = "" if self.metric is None else f" {self.metric}"
        return f"{self.op}{metric} {self.heads} x {self.rows} x {self.features}"

    @property
    def modes(self) -> tuple[str, ...]:
        return (FORWARD, FORWARD_BACKWARD)

    @property
    def shape(self) -> tuple[int, ...]:
        """[heads, rows, features], or [rows, features] for one head."""
        return self[2:4] if self.heads == 1 else self[1:4]

    def names(
        self, mode: str, compiles: bool, largest_table: float = LARGEST_TABLE
    ) -> tuple[str, ...]:
        """Of the contenders; ours alone where their table is too large."""
        if 4 * self.heads * self.rows**2 / 2**30 > largest_table:
            return ("ours",)
        return (*functions(self), *(("compile",) if compiles else ()))


def tiny_table() -> list[Case]:
    """Whether everything runs."""
    return [
        Case("info_nce", 3, 5, 8),
        Case("info_nce", 1, 9, 8),
        Case("distance_ratio_loss", 1, 4, 70),
        *(Case("pairwise_similarity", 1, 6, 8, metric) for metric in ("cosine", "dot", "l1")),
    ]


def quick_table() -> list[Case]:
    """Those of the full table that have up to 1024 rows."""
    return [case for case in full_table() if case.rows <= 1024]


def full_table() -> list[Case]:
    """In-batch losses of all sizes, feature maps of [64, 48, 48] and tables of similarities."""
    info_nce = [(3, 16), (3, 64), (1, 256), (1, 1024), (1, 4096), (1, 16_384), (1, 32_768)]
    return [
        *(Case("info_nce", heads, rows, 128) for heads, rows in info_nce),
        Case("distance_ratio_loss", 1, 16, 64 * 48 * 48),
        *(
            Case("pairwise_similarity", 1, rows, 128, metric)
            for rows in (1024, 4096)
            for metric in ("cosine", "dot", "l1")
        ),
    ]


TABLES = {"tiny": tiny_table, "quick": quick_table, "full": full_table}


def plain_similarity(query: Tensor, key: Tensor, metric: str) -> Tensor:
    if metric == "l1":
        return torch.cdist(query, key, p=1)
    if metric == "cosine":
        query, key = (torch.nn.functional.normalize(rows, dim=-1) for rows in (query, key))
    return query @ key.mT


def plain_ratio(anchor: Tensor, positive: Tensor, distances: Callable | None = None) -> Tensor:
    if distances is None:
        table = (anchor.unsqueeze(-2) - positive.unsqueeze(-3)).abs().mean(-1)
    else:
        table = distances(anchor, positive) / anchor.shape[-1]
    own = table.diagonal(dim1=-2, dim2=-1)
    others = (table.sum(-1) - own) / (table.shape[-1] - 1)
    return (own / (others + plain.EPS)).mean()


def functions(case: Case) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Ours and what is not compiled of the baselines, by name."""
    if case.op == "info_nce":
        ours = partial(clsd_fast.info_nce, temperature=plain.TEMPERATURE)
        return {"ours": ours, "eager": plain.info_nce}
    if case.op == "distance_ratio_loss":
        cdist = partial(plain_ratio, distances=partial(torch.cdist, p=1))
        return {"ours": clsd_fast.distance_ratio_loss, "eager": plain_ratio, "cdist": cdist}
    ours = partial(clsd_fast.pairwise_similarity, metric=case.metric)
    return {"ours": ours, "eager": partial(plain_similarity, metric=case.metric)}


def make_rows(case: Case, dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
    """Pairs of leaves that calls rotate over."""
    generator = torch.Generator().manual_seed(0)
    return [
        [torch.randn(case.shape, generator=generator).to(dtype).requires_grad_() for _ in range(2)]
        for _ in range(NUM_INPUTS)
    ]


def make_call(
    function: Callable, inputs: list[list[Tensor]], case: Case, mode: str
) -> Callable[[int], list[Tensor]]:
    grad = None
    if case.op == "pairwise_similarity":
        grad = torch.randn(case.rows, case.rows, generator=torch.Generator().manual_seed(1))
        grad = grad.to(inputs[0][0].dtype)
    return contest.make_call(function, inputs, [grad] * NUM_INPUTS, [], mode)


class Contest(contest.Contest):
    """Functions of the same rows, and gradients of both arguments."""

    def __init__(self, case: Case, mode: str) -> None:
        super().__init__(case, mode)
        self.checked_case = case._replace(rows=min(case.rows, CHECKED_ROWS))
        self.inputs = make_rows(case)

    def contender(self, name: str) -> Contender:
        function = functions(self.case)["eager" if name == "compile" else name]
        if name == "compile":
            function = contest.compiled(function)
        call = make_call(function, self.inputs, self.case, self.mode)
        return Contender(call, lambda: self.checked(function, torch.float32))

    def reference(self) -> list[Tensor]:
        return self.checked(functions(self.case)["eager"], torch.float64)

    def checked(self, function: Callable, dtype: torch.dtype) -> list[Tensor]:
        """The results for the rows that are checked."""
        rows = make_rows(self.checked_case, dtype)
        return make_call(function, rows, self.checked_case, self.mode)(0)
