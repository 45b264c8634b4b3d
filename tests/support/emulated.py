"""The CUDA operators on CPU tensors: the library of their emulated kernels, built on demand."""

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tolerance import assert_close
from torch import Tensor

from clsd_fast import reference
from clsd_fast._library import SCHEMAS

NAMESPACE = "clsd_fast_emulated"
#: Operators of the emulation's own tests.
EXTRA_SCHEMAS = {
    "planted": "(Tensor x, str fault) -> Tensor",
    "wgmma_product": "(Tensor a, Tensor b, bool transposed, bool proxy_fence, bool fence, "
    "bool wait) -> Tensor",
}
#: Of the order of warps and lanes, and of which copies are late, that tests try.
SEEDS = range(16)


class Emulation:
    """The loaded library: ``ops`` has its operators, the methods steer the launches."""

    def __init__(self, path: Path) -> None:
        self._library = torch.library.Library(NAMESPACE, "DEF")
        for name, schema in (SCHEMAS | EXTRA_SCHEMAS).items():
            self._library.define(name + schema)
        torch.ops.load_library(path)
        self.ops = getattr(torch.ops, NAMESPACE)
        functions = ctypes.CDLL(str(path))
        functions.clsd_emulation_seed.argtypes = [ctypes.c_uint64]
        #: Seed of the order of warps and lanes, and of which copies are late.
        self.seed = functions.clsd_emulation_seed
        #: Whether the device is one that runs the kernels for sm_90a.
        self.sm90a = functions.clsd_emulation_sm90a
        self._kernel = functions.clsd_emulation_kernel
        self._kernel.restype = ctypes.c_char_p
        #: Let every thread skip its i-th barrier of a block, wait for copies, proxy fence or wait
        #: for products; -1: none.
        self.skip_barrier = functions.clsd_emulation_skip_barrier
        self.skip_wait = functions.clsd_emulation_skip_wait
        self.skip_proxy_fence = functions.clsd_emulation_skip_proxy_fence
        self.skip_product_wait = functions.clsd_emulation_skip_product_wait

    def kernel(self) -> str:
        """The one that was launched last."""
        return self._kernel().decode()

    def reset(self) -> None:
        self.seed(0)
        self.sm90a(False)
        for skip in (
            self.skip_barrier,
            self.skip_wait,
            self.skip_proxy_fence,
            self.skip_product_wait,
        ):
            skip(-1)


def formats(tensor: Tensor) -> tuple[bool, bool]:
    """Whether it is contiguous, and channels_last: one pixel is both, and so is an empty tensor."""
    if tensor.numel() == 0:
        return True, True
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor.is_contiguous(), channels_last


def check(emulation: Emulation, op: str, *args: object) -> list[Tensor]:
    """Hold an operator's outputs for 16-bit tensors to the tolerance rule, and return them."""

    def outputs(function, arguments):
        result = function(*arguments)
        return [result] if isinstance(result, Tensor) else list(result)

    before = [a.clone() if isinstance(a, Tensor) else a for a in args]
    ours = outputs(getattr(emulation.ops, op), args)
    for argument, copy in zip(args, before, strict=True):
        assert not isinstance(copy, Tensor) or torch.equal(argument, copy), "an input was written"
    doubles = [a.double() if isinstance(a, Tensor) else a for a in args]
    exact = outputs(getattr(reference, op), doubles)
    theirs = outputs(getattr(reference, op), args)
    for i, result in enumerate(zip(ours, exact, theirs, strict=True)):
        assert_close(*result, f"{op}, output {i}")
        assert formats(ours[i]) == formats(theirs[i]), f"{op}, output {i}: memory format"
    return ours


def caught(emulation: Emulation, call: Callable[[], Tensor], expected: Tensor) -> Iterator[bool]:
    """Of every seed, when it is asked for, whether the call raises or its result is wrong."""
    for seed in SEEDS:
        emulation.seed(seed)
        try:
            yield not torch.allclose(call(), expected, rtol=1e-5, atol=1e-5)
        except RuntimeError:
            yield True
