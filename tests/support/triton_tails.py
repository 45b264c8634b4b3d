"""Compiles the Triton kernels of a training step's tails, and says what their machine code has.

``python triton_tails.py a100 h100`` prints one JSON object for each launch of four tails in
bfloat16, x2, batch 16, 48x48, 64 channels, forward and backward: barriers and integer divisions of
its innermost loops, spilled registers, and the microseconds that the model of `sass_time` predicts.
"""

import json
import re
import sys
from pathlib import Path

import torch
import triton

from clsd_fast.triton import upsample_tails

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "tools")]
import sass_clock  # noqa: E402 - found there
import triton_code  # noqa: E402
from sass_code import Instruction  # noqa: E402
from triton_code import compile_options, source  # noqa: E402

from support.triton_compile import target_of  # noqa: E402

TAILS, FACTOR = 4, 2


def step() -> None:
    """Forward and backward."""

    def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x = tensor(16, 64, 48, 48, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    weight, bias = tensor(64 * FACTOR**2, 64, 3, 3), tensor(64 * FACTOR**2)
    tensors = (x, weight, bias, None, None, tensor(3, 64, 3, 3), tensor(3))
    lists = [[] if t is None else [t] * TAILS for t in tensors]
    outputs, composed = upsample_tails.upsample_tails(*lists, None, None, FACTOR)
    saved = (outputs, lists[0], composed, *lists[1:6], None, FACTOR)
    upsample_tails.upsample_tails_backward(*saved, True, True)


Branch = tuple[int, int]


def innermost(branches: list[Branch]) -> list[Branch]:
    """Of branches, from where to where, those back over no other one: where to, and from where."""
    loops = [(to, at) for at, to in branches if to < at]
    return [
        (first, last)
        for first, last in loops
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in loops)
    ]


def barriers(code: list[Instruction]) -> list[int]:
    """Of each innermost loop of machine code."""
    branches = [(i.address, int(i.operands[-1], 16)) for i in code if i.kind == "BRA"]
    loops = [[i for i in code if a <= i.address <= b] for a, b in innermost(branches)]
    return [sum(i.kind == "BAR" for i in loop) for loop in loops]


def divisions(ptx: str) -> list[int]:
    """Of integers, of each innermost loop. Machine code has none, but many instructions for each,
    some of them before the loop."""
    lines = ptx.splitlines()
    labels = {line.split(":")[0]: n for n, line in enumerate(lines) if line.startswith("$L")}
    found = ((number, re.search(r"bra\S*\s+(\$L\w+);", line)) for number, line in enumerate(lines))
    branches = [(number, labels[match[1]]) for number, match in found if match]
    return [
        sum(bool(re.search(r"\b(div|rem)\.[su]\d", line)) for line in lines[first : last + 1])
        for first, last in innermost(branches)
    ]


def main(*cards: str) -> None:
    with triton_code.recorded() as calls:
        step()
    for card in map(sass_clock.CARDS.get, cards):
        compiled = triton_code.compiler(card.architecture)
        target = target_of("cuda " + card.architecture.strip("sm_a"))
        for call in calls:
            kernel, launch = compiled(call)
            specialized = source(call.kernel, call.args, call.options)
            options = compile_options(call.options)
            ptx = triton.compile(specialized, target=target, options=options).asm["ptx"]
            found = {
                "kernel": call.kernel.fn.__name__,
                "card": card.name,
                "barriers": barriers(kernel.code),
                "divisions": divisions(ptx),
                "spilled": sum(i.kind in ("LDL", "STL") for i in kernel.code),
                "us": sass_clock.predict(kernel, launch, card).us,
            }
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
