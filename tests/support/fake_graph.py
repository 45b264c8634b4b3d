"""CUDA graphs without a GPU: what a function asks of PyTorch is recorded, and done again alone."""

import gc

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
#: What waits for the device, or makes shapes of values: a capture ends at these.
WAITS = {aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select}
#: How a number of the host becomes a tensor, which in a graph stays what it was.
CONSTANTS = {aten.lift_fresh, aten.lift, aten.lift_fresh_copy}


def capture(function):
    """As ``clsd_train.graph.capture_graph``, but function does its work while it is recorded: what
    it changes is put back.

    Raises:
        RuntimeError: if function waits or takes a number from the host.
    """
    before = [(tensor, tensor.detach().clone()) for tensor in live_tensors()]
    state = torch.get_rng_state()
    recorder = Recorder(tensor for tensor, _ in before)
    try:
        with recorder:
            function()
    finally:
        torch.set_rng_state(state)
        for tensor, value in before:
            tensor.detach().copy_(value)
    return recorder.replay


def live_tensors():
    """Every tensor that anything holds, but for those without values that a compiler has left."""
    found = (x for x in gc.get_objects() if type(x) in (Tensor, torch.nn.Parameter))
    return [x for x in found if x.layout is torch.strided and x.device.type == "cpu"]


class Recorder(TorchDispatchMode):
    """Records each call of an operator with the very tensors that it is given and makes."""

    def __init__(self, static):
        super().__init__()
        self._calls = []
        self._known = {address(tensor) for tensor in static}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket in WAITS | CONSTANTS:
            raise RuntimeError(f"operation not permitted in a capture: {func}")
        for tensor in tensors_of((args, kwargs)):
            if address(tensor) not in self._known:
                raise RuntimeError(f"a tensor from outside the capture in {func}")
        result = func(*args, **kwargs)
        self._known |= {address(tensor) for tensor in tensors_of(result)}
        self._calls.append((func, args, kwargs, result))
        return result

    def replay(self):
        """Do it all again: into the same memory, as a graph does."""
        with torch.no_grad():
            for func, args, kwargs, result in self._calls:
                again = func(*args, **kwargs)
                for target, source in zip(tensors_of(result), tensors_of(again), strict=True):
                    if address(target) != address(source):  # neither a view nor in place
                        target.detach().copy_(source)


def tensors_of(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def address(tensor):
    """Of the memory that holds the tensor, also of a view."""
    return tensor.untyped_storage().data_ptr()
