"""What a training step of CLSD launches, found by running one on the CPU.

The operators are registered for CPU tensors as they are on a GPU: those with CUDA kernels call the
emulation, which records launches without carrying them out, and those with Triton kernels record
theirs. PyTorch's own operators are real, so that the step goes its way to the end; what it computes
is undefined. Nothing of a process that has recorded a step should be used for anything else.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import triton_code
from emulation import Emulation, Gpu, as_on_a_gpu
from sass_code import Launch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import clsd_fast
from clsd_fast import _library, backend

#: PyTorch's operators that launch nothing: they make a tensor without values, or ask for one.
WITHOUT_LAUNCH = frozenset(
    (
        "empty",
        "empty_like",
        "empty_strided",
        "new_empty",
        "new_empty_strided",
        "_local_scalar_dense",
    )
)
#: Of our operators, and of those that are the CUDA kernels.
NAMESPACES = (_library.NAMESPACE, backend.native.CUDA_NAMESPACE)
#: What the dispatcher is asked for to call an operator's kernel itself, below this mode.
CPU_KERNEL = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
SCALE, CHANNELS, BLOCKS, TAPS = 2, 64, 16, (5, 10, 15)


class Aten(NamedTuple):
    """A call of one of PyTorch's own operators, and the bytes that it reads and writes."""

    name: str
    num_bytes: int


class Step(NamedTuple):
    """All that a step launches, in no order."""

    native: list[Launch]
    triton: list[triton_code.Call]
    aten: list[Aten]

    @property
    def launches(self) -> int:
        return len(self.native) + sum(c.programs > 0 for c in self.triton) + len(self.aten)


class AtenCalls(TorchDispatchMode):
    """Records PyTorch's own operators, those inside of ours too."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Aten] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace in NAMESPACES:
            with self:
                return func.redispatch(CPU_KERNEL, *args, **kwargs)
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and name not in WITHOUT_LAUNCH and not is_view(func):
            self.calls.append(Aten(name, moved(func, args, kwargs, result)))
        return result


def is_view(func: torch._ops.OpOverload) -> bool:
    """Whether what it returns is memory of an argument that it does not write."""
    aliases = [value.alias_info for value in func._schema.returns]
    return bool(aliases) and all(a is not None and not a.is_write for a in aliases)


def moved(func: torch._ops.OpOverload, args: tuple, kwargs: dict, result: object) -> int:
    """Bytes of what it reads and what it writes, each once."""
    named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    written = [
        named[argument.name]
        for argument in func._schema.arguments
        if argument.alias_info and argument.alias_info.is_write and argument.name in named
    ]
    outputs = written or result
    return sum(t.nbytes for t in tree_leaves((args, kwargs, outputs)) if isinstance(t, Tensor))


def record(
    emulation: Emulation,
    gpu: Gpu,
    head_blocks: int,
    batch: int = 16,
    patch_size: int = 48,
) -> Step:
    """One step: x2, 64 channels, 16 blocks, 3 heads, bfloat16 autocast, channels_last, Adam."""
    torch.manual_seed(0)
    student = clsd_fast.EDSR(SCALE, BLOCKS, CHANNELS)
    model = clsd_fast.CLSD(student, TAPS, head_blocks).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    lr, hr = (
        torch.zeros(batch, 3, size, size).to(memory_format=torch.channels_last)
        for size in (patch_size, SCALE * patch_size)
    )

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(lr, hr).losses
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()

    aten = AtenCalls()
    with as_on_a_gpu(emulation, gpu), triton_code.recorded() as triton:
        with emulation.recorded(runs=False):
            step()  # makes the optimizer's state
        triton.clear()
        with emulation.recorded(runs=False) as native, aten:
            step()
    return Step([launch for launch, _ in native], triton, aten.calls)


def operators(emulation: Emulation, gpu: Gpu) -> dict[str, list[Launch]]:
    """The launches of single calls, by the titles that `benchmarks/gpu.py` gives them; and of a
    residual block without gradients on an image so small that it is one launch."""
    found = {}
    with as_on_a_gpu(emulation, gpu):
        for title, call in operator_calls().items():
            with emulation.recorded(runs=False) as launches:
                call()
            found[title] = [launch for launch, _ in launches]
    return found


def operator_calls() -> dict[str, Callable[[], object]]:
    ops = torch.ops.clsd_fast
    patch_shape = (16, CHANNELS, 48, 48)
    calls = {}
    for shape, outputs in ((patch_shape, 64), ((16, 3, 48, 48), 64), ((16, 64, 96, 96), 3)):
        x, grad = images(*shape), images(shape[0], outputs, *shape[2:])
        weight, bias = images(outputs, shape[1], 3, 3), images(outputs)
        title = f"conv3x3 {shape[1]} to {outputs}, {list(shape)}"
        calls[f"{title}, forward"] = partial(ops.conv3x3, x, weight, bias, None, 1.0, False)
        backward = partial(ops.conv3x3_backward, grad, x, weight, 1.0)
        calls[f"{title}, dgrad"] = partial(backward, True, False, False)
        calls[f"{title}, wgrad"] = partial(backward, False, True, True)
    x, weight, bias = images(*patch_shape), images(64, 64, 3, 3), images(64)
    for inputs, name in ((x, "residual_block"), (images(1, 64, 24, 48), "small residual_block")):
        title = f"{name} 64 to 64, {list(inputs.shape)}, forward"
        block = partial(ops.residual_block, inputs, weight, bias, weight, bias, 1.0, False)
        calls[title] = block
    upsampled = (x, images(256, 64, 3, 3), images(256), 2)
    title = f"pixel_shuffle_upsample 64 to 64, x2, {list(patch_shape)}, forward"
    calls[title] = partial(ops.pixel_shuffle_upsample, *upsampled)
    return calls


def images(*shape: int) -> Tensor:
    """Or other tensors, without values."""
    tensor = torch.empty(shape, dtype=torch.bfloat16)
    return tensor.to(memory_format=torch.channels_last) if len(shape) == 4 else tensor
