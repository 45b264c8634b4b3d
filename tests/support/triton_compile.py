"""Compiles every Triton kernel, as the operators launch it, for a GPU that need not be there.

A process of its own, because Triton is imported either for its interpreter or for its compiler:
``python triton_compile.py "cuda 90" "hip gfx942"`` prints one JSON object a kernel.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import torch
import triton
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget

from clsd_fast.triton import (
    _rows,
    distance_ratio_loss,
    info_nce,
    pairwise_similarity,
    upsample_tail,
)
from clsd_fast.triton.tail import compose

sys.path.append(str(Path(__file__).parents[2] / "tools"))
from triton_code import compile_options, source  # noqa: E402 - found there

TARGETS = ("cuda 80", "cuda 90", "cuda 100", "hip gfx942")
DTYPES = ("float32", "float16", "bfloat16")
MODULES = (
    _rows,
    compose,
    distance_ratio_loss,
    info_nce,
    pairwise_similarity,
    upsample_tail,
)


def launches(dtype: torch.dtype) -> list[tuple]:
    """(kernel, arguments, options) of every launch of one call of each variant."""
    recorded = []
    for module in MODULES:
        module.launch = lambda kernel, programs, *args, **options: recorded.append(
            (kernel, args, options)
        )

    def rows(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    def forward_and_backward(module, *args):
        name = module.__name__.split(".")[-1]
        outputs = getattr(module, name)(*args)
        loss, *saved = tree_leaves(outputs)
        if name == "info_nce":  # which has an argument of the forward alone
            args = args[:-1]
        getattr(module, f"{name}_backward")(loss, *saved, *args)

    query, other, large = rows(3, 64, 128), rows(3, 48, 128), rows(3, 300, 200)
    mask, labels = rows(3, 64, 64, dtype=torch.bool), rows(3, 64, dtype=torch.int64)
    learned = rows(dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    for metric in ("cosine", "dot", "l1"):
        forward_and_backward(pairwise_similarity, query, other, metric)
    forward_and_backward(pairwise_similarity, large, large, "cosine")
    forward_and_backward(info_nce, query, query, None, mask, labels, learned, 1.0, "mean", False)
    forward_and_backward(
        info_nce, query, query, other, mask[..., :48], None, None, 0.07, "sum", False
    )
    forward_and_backward(info_nce, large, large, None, None, None, None, 0.07, "none", False)
    for negatives in (None, rows(3, 9, 64 * 48 * 48)):
        maps = rows(3, 16, 64 * 48 * 48)
        forward_and_backward(distance_ratio_loss, maps, maps, negatives, 1e-7)
    if dtype != torch.float16:  # which is bfloat16 to these kernels
        tail(dtype)
    return recorded


def tail(dtype: torch.dtype) -> None:
    """The tail of EDSR x4, which has every kernel of the others and in more variants.

    It is composed in float32 for every dtype but float64.
    """
    if dtype != torch.float32:
        compose.launch = lambda *args, **options: None

    def tensor(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device="meta")

    x = tensor(16, 64, 48, 48, dtype=dtype).to(memory_format=torch.channels_last)
    stages = [tensor(256, 64, 3, 3), tensor(256), tensor(256, 64, 3, 3), tensor(256)]
    out_weight = tensor(3, 64, 3, 3)
    output, kernel = upsample_tail.upsample_tail(x, *stages, out_weight, tensor(3), 4)
    upsample_tail.upsample_tail_backward(
        output, x, kernel, *stages, out_weight, 4, needs_x=True, needs_params=True
    )


def target_of(name: str) -> GPUTarget:
    backend, architecture = name.split()
    if backend == "cuda":
        return GPUTarget("cuda", int(architecture), 32)
    return GPUTarget("hip", architecture, 64)


def variants() -> dict[str, list[dict[str, tuple]]]:
    """The launches of each kernel, each by dtype."""
    found = {}
    for dtype in DTYPES:
        counts = Counter()
        for launch in launches(getattr(torch, dtype)):
            name = launch[0].fn.__name__
            of_kernel, number = found.setdefault(name, []), counts[name]
            if number == len(of_kernel):
                of_kernel.append({})
            of_kernel[number][dtype] = launch
            counts[name] += 1
    return found


def compile_for(name: str, target: str, dtype: str, launch: tuple) -> dict:
    """What is known of the compiled kernel."""
    kernel, args, options = launch
    gpu = target_of(target)
    specialized, given = source(kernel, args, options), compile_options(options)
    compiled = triton.compile(specialized, target=gpu, options=given)
    text = compiled.asm["ptx" if gpu.backend == "cuda" else "amdgcn"]
    return {
        "kernel": name,
        "target": target,
        "dtype": dtype,
        "shared": compiled.metadata.shared,
        "mma": any(word in text for word in ("mma.sync", "wgmma", "tcgen05.mma", "v_mfma")),
        "tf32": "tf32" in text,
    }


def main(*targets: str) -> None:
    """Each kernel for each target, in each of its dtypes and variants, but not in every triple."""
    for number, (name, of_kernel) in enumerate(variants().items()):
        for step in range(max(len(of_kernel), len(TARGETS))):
            target, by_dtype = TARGETS[step % len(TARGETS)], of_kernel[step % len(of_kernel)]
            dtype = list(by_dtype)[(number + step) % len(by_dtype)]
            if target in targets:
                print(json.dumps(compile_for(name, target, dtype, by_dtype[dtype])), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
