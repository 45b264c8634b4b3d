"""The CUDA operators on CPU tensors: the library of their emulated kernels, built on demand."""

import ctypes
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import native_build
import torch
from sass_code import Launch, short_name

from clsd_fast import _library, backend
from clsd_fast.backend import native

#: Operators of the emulation's own tests.
EXTRA_SCHEMAS = {
    "planted": "(Tensor x, str fault) -> Tensor",
    "wgmma_product": "(Tensor a, Tensor b, bool transposed, bool proxy_fence, bool fence, "
    "bool wait) -> Tensor",
}


#: Of the device that is emulated, unless another number is asked for.
MULTIPROCESSORS = 16
#: Shared memory that a block may ask for: on an A100, and on GeForce cards.
LARGE_SHARED_BYTES, SMALL_SHARED_BYTES = 163 * 1024, 99 * 1024


class Counts(NamedTuple):
    """What a launch did: products of a warp and of a warpgroup, and a thread's accesses of 16 bytes
    of global memory, copies of zeros included."""

    mma: int
    wgmma: int
    loads16: int
    stores16: int


class _Launch(ctypes.Structure):
    """ClsdLaunch of tests/cuda_emulation/runtime.h."""

    _fields_ = (
        ("kernel", ctypes.c_char_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint64),
        *((name, ctypes.c_uint64) for name in Counts._fields),
        ("parameters", ctypes.c_void_p),
        ("parameter_bytes", ctypes.c_uint64),
    )


class Emulation:
    """The loaded library: ``ops`` has its operators, the methods steer the launches."""

    def __init__(self, path: Path) -> None:
        self._library = torch.library.Library(native.CUDA_NAMESPACE, "FRAGMENT")
        for name, schema in EXTRA_SCHEMAS.items():
            self._library.define(name + schema)
        torch.ops.load_library(path)
        self.ops = getattr(torch.ops, native.CUDA_NAMESPACE)
        #: Operators of clsd_fast that have CUDA kernels, backwards left out.
        self.operators = native.operators_for("CPU")
        self._functions = functions = ctypes.CDLL(str(path))
        functions.clsd_emulation_seed.argtypes = [ctypes.c_uint64]
        #: Seed of the order of warps and lanes, and of which copies are late.
        self.seed = functions.clsd_emulation_seed
        #: Whether the device is one that runs the kernels for sm_90a.
        self.sm90a = functions.clsd_emulation_sm90a
        #: How many multiprocessors the device has.
        self.multiprocessors = functions.clsd_emulation_multiprocessors
        #: How much shared memory a block may ask for.
        self.block_shared_bytes = functions.clsd_emulation_block_shared_bytes
        functions.clsd_emulation_kernel.restype = ctypes.c_char_p
        functions.clsd_emulation_launch.restype = _Launch
        #: Let every thread skip its i-th barrier of a block, wait for copies, proxy fence or wait
        #: for products; -1: none.
        self.skip_barrier = functions.clsd_emulation_skip_barrier
        self.skip_wait = functions.clsd_emulation_skip_wait
        self.skip_proxy_fence = functions.clsd_emulation_skip_proxy_fence
        self.skip_product_wait = functions.clsd_emulation_skip_product_wait

    def kernel(self) -> str:
        """The one that was launched last."""
        return self._functions.clsd_emulation_kernel().decode()

    def reset(self) -> None:
        self.seed(0)
        self.sm90a(False)
        self.multiprocessors(MULTIPROCESSORS)
        self.block_shared_bytes(LARGE_SHARED_BYTES)
        for skip in (
            self.skip_barrier,
            self.skip_wait,
            self.skip_proxy_fence,
            self.skip_product_wait,
        ):
            skip(-1)

    @contextmanager
    def recorded(self, runs: bool = True) -> Iterator[list[tuple[Launch, Counts]]]:
        """The launches of the block, when it has ended. Without ``runs`` nothing is computed, all
        that kernels would write is undefined, and the counts are 0."""
        launches: list[tuple[Launch, Counts]] = []
        self._functions.clsd_emulation_record(runs)
        try:
            yield launches
            number = self._functions.clsd_emulation_launches()
            launches += map(_recorded, map(self._functions.clsd_emulation_launch, range(number)))
        finally:
            self._functions.clsd_emulation_stop_recording()


class Gpu(NamedTuple):
    """What the operators ask a GPU."""

    capability: tuple[int, int]
    multiprocessors: int = MULTIPROCESSORS
    block_shared_bytes: int = LARGE_SHARED_BYTES


@contextmanager
def as_on_a_gpu(emulation: Emulation, gpu: Gpu) -> Iterator[None]:
    """Let CPU tensors be served as a GPU's: by the emulated CUDA kernels, else by Triton's."""
    library = torch.library.Library(_library.NAMESPACE, "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*other operators may also be overridden")
        backend.register(library, "CPU", allow_override=True)
    emulation.sm90a(gpu.capability == (9, 0))
    emulation.multiprocessors(gpu.multiprocessors)
    emulation.block_shared_bytes(gpu.block_shared_bytes)
    patches = (
        patch.dict(backend._WHY_NOT, native=backend.cuda.why_not),
        patch.object(native, "cuda_operators", emulation.operators),
        patch.object(native, "why_not_on", lambda device: None),
        patch.object(backend.triton, "devices", frozenset({"cpu"})),
        patch.object(backend.triton, "missing", None),
        patch.object(torch.cuda, "get_device_capability", lambda device: gpu.capability),
    )
    with ExitStack() as stack:
        stack.callback(library._destroy)
        stack.callback(emulation.reset)
        for each in patches:
            stack.enter_context(each)
        yield


def _enumerators() -> dict[str, str]:
    """By their names, how demangled symbols write the values of the kernels' enums."""
    values = {}
    for source in (native_build.ROOT / "csrc" / "cuda").glob("*.cuh"):
        for enum, names in re.findall(r"enum class (\w+) \{([^}]*)\}", source.read_text()):
            for number, name in enumerate(names.split(",")):
                values[f"{enum}::{name.strip()}"] = f"({enum}){number}"
    return values


ENUMERATORS = _enumerators()


def _recorded(found: _Launch) -> tuple[Launch, Counts]:
    kernel = short_name(found.kernel.decode())
    kernel = re.sub(r"\w+::\w+", lambda name: ENUMERATORS.get(name[0], name[0]), kernel)
    parameters = ctypes.string_at(found.parameters, found.parameter_bytes)
    launch = Launch(kernel, tuple(found.grid), tuple(found.block), found.shared_bytes, parameters)
    return launch, Counts(*(getattr(found, name) for name in Counts._fields))
