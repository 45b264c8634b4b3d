"""Machine code and arguments of the Triton kernels, as the operators launch them, without a GPU."""

import itertools
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import sass_code
import torch
import triton
from torch.utils._pytree import tree_leaves, tree_map_only
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

#: Modules whose operators launch kernels.
MODULES = (
    "_rows",
    "conv.convolve",
    "conv.gradients",
    "conv.packing",
    "distance_ratio_loss",
    "info_nce",
    "pairwise_similarity",
    "tail.apply",
    "tail.compose",
    "tail.compose_gradients",
    "tail.gradients",
)
TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.bool: "i1",
}
#: Where tensors are said to lie: nothing reads from there.
ADDRESS = 0x7F0000000000


class Call(NamedTuple):
    """A launch as an operator asks for it."""

    kernel: triton.JITFunction
    programs: int
    args: tuple
    options: dict[str, object]


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """The launches of the block, which are not carried out."""
    calls: list[Call] = []

    def launch(kernel, programs, *args, **options):
        # Not the tensors themselves: autograd copies a gradient that somebody else holds.
        kept = tree_map_only(torch.Tensor, torch.Tensor.detach, args)
        calls.append(Call(kernel, programs, kept, options))

    with ExitStack() as stack:
        for name in MODULES:
            module = import_module(f"clsd_fast.triton.{name}")
            stack.enter_context(patch.object(module, "launch", launch))
        yield calls


def source(kernel: triton.JITFunction, args: tuple, options: dict[str, object]) -> ASTSource:
    """The kernel specialized as at a launch: None, strides of 1 and options are constants."""
    signature, constants, attributes = {}, {}, {}

    def type_of(value, path):
        if isinstance(value, tuple):
            return tuple(type_of(item, (*path, k)) for k, item in enumerate(value))
        if is_constant(value):
            constants[path] = value
            return "constexpr"
        if isinstance(value, torch.Tensor):
            attributes[path] = [["tt.divisibility", 16]]
            return f"*{TYPES[value.dtype]}"
        if isinstance(value, float):
            return "fp64"
        if value % 16 == 0:
            attributes[path] = [["tt.divisibility", 16]]
        return "i32"

    for index, name in enumerate(kernel.arg_names):
        if name in options:
            signature[name], constants[(index,)] = "constexpr", options[name]
        else:
            signature[name] = type_of(args[index], (index,))
    return ASTSource(kernel, signature, constants, attributes)


def is_constant(value: object) -> bool:
    return value is None or (isinstance(value, int) and value == 1)


def compile_options(options: dict[str, object]) -> dict[str, object]:
    """Those of a launch's options that the compiler takes."""
    return {name: options[name] for name in ("num_warps", "num_stages") if name in options}


def parameters(call: Call) -> bytes:
    """The bytes of its arguments, and null for Triton's two pointers to scratch memory."""
    packed = b""
    for value in tree_leaves([a for a in call.args if a is not None]):
        if is_constant(value):
            continue
        kind, number = "i", value
        if isinstance(value, torch.Tensor):
            kind, number = "Q", ADDRESS
        elif isinstance(value, float):
            kind = "d"
        packed += bytes(-len(packed) % struct.calcsize(kind)) + struct.pack(f"<{kind}", number)
    return packed + bytes(-len(packed) % 8) + bytes(16)


Compiled = tuple[sass_code.Kernel, sass_code.Launch]


def compiler(architecture: str) -> Callable[[Call], Compiled]:
    """Compiles calls for an architecture, each kernel and kind of arguments once."""
    number = int("".join(filter(str.isdigit, architecture)))
    target = GPUTarget("cuda", number, sass_code.WARP_LANES)
    found: dict[tuple, tuple] = {}

    def compiled(call: Call) -> Compiled:
        specialized = source(call.kernel, call.args, call.options)
        key = (call.kernel, str(specialized.signature), str(specialized.constants))
        if key not in found:
            result = triton.compile(
                specialized, target=target, options=compile_options(call.options)
            )
            kernel = code(result.asm["cubin"], architecture, result.metadata.name)
            found[key] = kernel, result.metadata
        kernel, metadata = found[key]
        threads = sass_code.WARP_LANES * metadata.num_warps
        grid, block = (call.programs, 1, 1), (threads, 1, 1)
        return kernel, sass_code.Launch(kernel.name, grid, block, metadata.shared, parameters(call))

    return compiled


def kinds(cubins: Sequence[bytes], architecture: str) -> list[list[str]]:
    """Those of each cubin's instructions. The disassembler takes a third of a second to start, so
    that it starts once and reads all of them in a row."""
    texts = list(map(instructions, cubins))
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(texts))
        file.flush()
        disassembler = Path(sass_code.cuobjdump()).with_name("nvdisasm")
        kind = architecture.replace("sm_", "SM")
        listing = sass_code.run(disassembler, "-hex", "-b", kind, file.name)
    ((_, found),) = sass_code.functions(f"Function : all\n{listing}").items()
    ends = itertools.accumulate(len(text) // sass_code.INSTRUCTION_BYTES for text in texts)
    bounds = [0, *ends]
    assert len(found) == bounds[-1], f"{len(found)} instructions of {bounds[-1]} were read"
    return [[i.kind for i in found[a:b]] for a, b in itertools.pairwise(bounds)]


def instructions(cubin: bytes) -> bytes:
    """The sections with them, of a file in the format of ELF for 64 bits."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, index = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    names = sections[index][4]
    of_code = (s for s in sections if cubin.startswith(b".text.", names + s[0]))
    return b"".join(cubin[offset : offset + length] for *_, offset, length in of_code)


def code(cubin: bytes, architecture: str, name: str) -> sass_code.Kernel:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return sass_code.Binary(Path(file.name), architecture)[name]
