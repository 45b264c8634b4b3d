"""A function that a GPU repeats without Python."""

from collections.abc import Callable

import torch

from .errors import tell

Function = Callable[[], None]

# The libraries beneath set themselves up in the first calls, which no graph may hold: those of
# several processes in more of them.
WARM_UP, WARM_UP_OF_RANKS = 3, 11


class Graphed:
    """``function`` as one CUDA graph after a few calls; each call does its work.

    Where it cannot be captured, that is said once, and it is called as it is.

    Args:
        function: reads and writes tensors that stay where they are, and waits for nothing.
        renew: called when a capture has failed in the middle of function.
        capture: makes the graph and returns what replays it.
        warm_up: calls function before that.
        calls: how often.
    """

    def __init__(
        self,
        function: Function,
        renew: Function,
        capture: Callable[[Function], Function] | None = None,
        warm_up: Callable[[Function], None] | None = None,
        calls: int = WARM_UP,
    ) -> None:
        self._function, self._renew = function, renew
        self._capture, self._warm_up = capture or capture_graph, warm_up or call_aside
        self._replay: Function | None = None
        self._left = calls

    def __call__(self) -> None:
        if self._left:
            self._left -= 1
            self._warm_up(self._function)
            return
        if self._replay is None:
            self._replay = self._captured()
        self._replay()

    def _captured(self) -> Function:
        try:
            return self._capture(self._function)
        except RuntimeError as error:
            tell(f"train: no CUDA graph, steps are slower: {str(error).splitlines()[0]}")
            self._renew()
            return self._function


def capture_graph(function: Function) -> Function:
    """Record function, which computes nothing while it is recorded."""
    graph = torch.cuda.CUDAGraph()
    # Of this thread alone: the one that brings the batches goes on.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        function()
    return graph.replay


def call_aside(function: Function) -> None:
    """Call function on another stream: what stays of it may not depend on the usual one."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
