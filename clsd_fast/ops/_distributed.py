"""Rows of all ranks of a process group, with gradients that flow back to their rank."""

import torch
import torch.distributed as dist
from torch import Tensor

from .._torch import all_gather

_MAX_DIMS = 8


def gather_rows(op: str, group: "dist.ProcessGroup", rows: Tensor) -> Tensor:
    """[..., N, D] of each rank to [..., ranks N, D], this rank's first, then rank + 1 and so on.

    The backward sums the gradients that all ranks have for this rank's rows.

    Raises:
        ValueError: on every rank, if the ranks' shapes differ.
    """
    # A graph is of calls that have been made before, and cannot wait for the shapes.
    if not (rows.is_cuda and torch.cuda.is_current_stream_capturing()):
        _check_even(op, group, rows)
    gathered = _all_gather(group, rows.contiguous().unsqueeze(0))
    return gathered.roll(-dist.get_rank(group), 0).movedim(0, -3).flatten(-3, -2)


def roll_columns(group: "dist.ProcessGroup", mask: Tensor) -> Tensor:
    """The columns of mask [..., N, ranks M], given in the order of ranks, in `gather_rows`'s."""
    columns = mask.shape[-1] // group.size()
    return mask.roll(-dist.get_rank(group) * columns, -1)


def _all_gather(group: "dist.ProcessGroup", tensor: Tensor) -> Tensor:
    """[1, ...] of each rank to [ranks, ...] in the order of ranks."""
    if tensor.is_floating_point():
        return all_gather(tensor, group)
    gathered = [torch.empty_like(tensor) for _ in range(group.size())]
    dist.all_gather(gathered, tensor, group)
    return torch.cat(gathered)


def _check_even(op: str, group: "dist.ProcessGroup", rows: Tensor) -> None:
    """Collectives on uneven tensors hang or corrupt memory, so shapes travel first."""
    padding = [-1] * (_MAX_DIMS - rows.dim())
    own = torch.tensor([[*rows.shape, *padding]], device=rows.device)
    shapes = [[size for size in shape if size >= 0] for shape in _all_gather(group, own).tolist()]
    if any(shape != shapes[0] for shape in shapes):
        got = ", ".join(map(str, shapes))
        raise ValueError(f"{op}: expected rows of the same shape on every rank of group, got {got}")
