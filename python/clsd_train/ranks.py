"""The processes that train one model together, as torchrun starts them."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .config import TrainConfig
from .errors import SharedError, UserError, shorten

Item = TypeVar("Item")
Result = TypeVar("Result")


class Ranks:
    """This process among those of a run; alone where torchrun has not started it.

    Numbers of the host travel by gloo, gradients on GPUs by NCCL.

    Args:
        device: the configured device; on GPUs each process of a machine has its own.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
        device: of this process.

    Raises:
        UserError: for variables of the environment that torchrun would not set so, and if the
            ranks do not meet.
    """

    def __init__(self, device: torch.device) -> None:
        self.size = _number("WORLD_SIZE", 1, 2**31, default=1)
        self.rank = _number("RANK", 0, self.size, default=0 if self.size == 1 else None)
        self.device = device
        if self.size == 1:
            return
        if device.type == "cuda":
            self.device = torch.device("cuda", _number("LOCAL_RANK", 0, torch.cuda.device_count()))
            torch.cuda.set_device(self.device)
            # Its watchdog asks for the state of what a graph is being made of.
            os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        self._meet("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")

    def _meet(self, backend: str) -> None:
        address, port = os.environ.get("MASTER_ADDR", ""), _number("MASTER_PORT", 0, 2**16)
        try:
            dist.init_process_group(backend, **self._meeting_place(address, port))
        except (dist.DistError, RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"train: expected {self.size} ranks to meet at {address}:{port}, got {reason}"
            ) from None

    def _meeting_place(self, address: str, port: int) -> dict[str, Any]:
        """Where the ranks find each other, if not where PyTorch lets them.

        torchrun keeps its store over restarts: the ranks would find addresses of those that ended.
        """
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
            return {}
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"restart-{restart}", dist.TCPStore(address, port))
        return {"store": store, "rank": self.rank, "world_size": self.size}

    @property
    def group(self) -> "dist.ProcessGroup | None":
        """Of all processes, None of this one alone."""
        return dist.group.WORLD if self.size > 1 else None

    def samples(self, options: TrainConfig) -> range:
        """Which numbers of a step's batch are this rank's.

        Raises:
            SharedError: if the ranks do not divide it.
        """
        if options.batch_size % (self.size * options.accumulate):
            raise SharedError(
                f"config: train.batch_size: expected a multiple of {self.size} ranks times "
                f"accumulate={options.accumulate}, got {options.batch_size}"
            )
        count = options.batch_size // self.size
        return range(self.rank * count, (self.rank + 1) * count)

    def wrap(self, model: nn.Module, accumulate: int) -> nn.Module:
        """The model with gradients that are the mean over the ranks.

        Args:
            model: all its parameters that need a gradient get one in each step.
            accumulate: parts of a step, of which :func:`unshared` holds for all but the last.
        """
        if self.size == 1:
            return model
        # Of a static graph, PyTorch forgets to exchange gradients after no_sync.
        options: dict[str, Any] = {
            "static_graph": accumulate == 1,
            "gradient_as_bucket_view": True,
        }
        if self.device.type != "cuda":
            return DistributedDataParallel(model, **options)
        with torch.cuda.stream(torch.cuda.Stream()):  # so that a graph may hold it
            return DistributedDataParallel(model, [self.device], **options)

    def first(self, function: Callable[[], Result]) -> Result:
        """Call function on rank 0, then on the others: what it writes is there for them.

        Raises:
            SharedError: on the others, if rank 0 has failed.
        """
        failure: list[str | None] = [None]
        if self.rank == 0:
            try:
                result = function()
            except BaseException as error:
                failure = [str(error)]
                raise
            finally:
                self._broadcast(failure)
            return result
        self._broadcast(failure)
        if failure[0] is not None:
            raise SharedError(failure[0])
        return function()

    def _broadcast(self, content: list[Any]) -> None:
        if self.size > 1:
            with self.explained():
                dist.broadcast_object_list(content)

    def mean(self, numbers: Iterable[float]) -> list[float]:
        """Of each number, over the ranks."""
        return [total / self.size for total in self._reduce(numbers, dist.ReduceOp.SUM)]

    def least(self, number: int) -> int:
        """Of a number, over the ranks."""
        return -self.greatest(-number)

    def greatest(self, number: int) -> int:
        """Of a number, over the ranks."""
        return int(self._reduce([number], dist.ReduceOp.MAX)[0])

    def _reduce(self, numbers: Iterable[float], operation: Any) -> list[float]:
        values = list(numbers)
        if self.size == 1:
            return values
        reduced = torch.tensor(values, dtype=torch.float64)
        with self.explained():
            dist.all_reduce(reduced, operation)
        return reduced.tolist()

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """``[function(item) for item in items]``, shared out among the ranks."""
        own = [function(item) for item in items[self.rank :: self.size]]
        if self.size == 1:
            return own
        parts: list[list[Result]] = [[] for _ in range(self.size)]
        with self.explained():
            dist.all_gather_object(parts, own)
        return [parts[index % self.size][index // self.size] for index in range(len(items))]

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Within ``with``, the end of another process is one sentence.

        Raises:
            UserError: if the others cannot be reached any more.
        """
        try:
            yield
        except (dist.DistError, RuntimeError) as error:
            if self.size == 1 or not _is_of_connection(error):
                raise
            raise UserError(
                f"train: expected all {self.size} ranks to go on, got an end of another than "
                f"rank {self.rank}; --resume continues from the last checkpoint"
            ) from None

    def close(self) -> None:
        """Leave the others."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def unshared(model: nn.Module) -> AbstractContextManager[None]:
    """Within ``with``, gradients of a wrapped model are added up by each rank for itself.

    The next backward pass outside shares the sum.
    """
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def _number(name: str, least: int, end: int, default: int | None = None) -> int:
    """An environment variable of torchrun's, an integer of least <= number < end."""
    text = os.environ.get(name, "")
    if not text and default is not None:
        return default
    if not (text.isascii() and text.isdigit() and least <= int(text[:20]) < end):
        raise UserError(
            f"train: {name}: expected an integer from {least} to {end - 1} in the environment, "
            f"as torchrun sets it, got {shorten(text) if text else 'none'}"
        )
    return int(text)


def _is_of_connection(error: Exception) -> bool:
    words = ("gloo", "connection", "nccl", "peer", "socket", "timed out", "timeout")
    return isinstance(error, dist.DistError) or any(w in str(error).lower() for w in words)
