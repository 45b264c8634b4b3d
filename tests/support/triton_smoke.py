"""Whether the kernels work with the Triton that is there: ``python triton_smoke.py compile``, or
``interpret`` where ``TRITON_INTERPRET=1`` is set.

The first compiles every kernel once for sm_80, the second holds a convolution and tails, forward
and backward, to plain PyTorch in Triton's interpreter. Both end with a line that says so.
"""

import sys
from pathlib import Path

import torch
import triton

TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS), str(TESTS.parent / "tools")]


def compile_all() -> str:
    from triton_code import compile_options, source

    from support import triton_compile, triton_convolutions

    found = {
        name: next(iter(of_kernel[0].values()))
        for name, of_kernel in triton_compile.variants().items()
    }
    for call in triton_convolutions.calls("cuda 80", "16-bit"):
        found.setdefault(call.kernel.fn.__name__, call)
    target = triton_compile.target_of("cuda 80")
    for call in found.values():
        specialized = source(call.kernel, call.args, call.options)
        triton.compile(specialized, target=target, options=compile_options(call.options))
    return f"{len(found)} kernels compiled"


def interpret() -> str:
    from tolerance import assert_close
    from torch.utils._pytree import tree_leaves

    from clsd_fast import reference
    from clsd_fast.backend import triton as backend
    from support.calls import BACKWARDS, FORWARDS

    of_both = {}
    for op, values in FORWARDS + BACKWARDS:
        of_both.setdefault(op, values)
    for op in ("conv3x3", "conv3x3_backward", "upsample_tail", "upsample_tail_backward"):
        ours, expected = backend.call(op, *of_both[op]), getattr(reference, op)(*of_both[op])
        for a, b in zip(*map(tree_leaves, (ours, expected)), strict=True):
            assert_close(a, b, b, op)
    return "a convolution and a tail equal PyTorch's"


def main(mode: str) -> None:
    does = {"compile": compile_all, "interpret": interpret}[mode]
    print(f"Triton {triton.__version__}, PyTorch {torch.__version__}: {does()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
