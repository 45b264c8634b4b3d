"""Compiles every Triton kernel, as the operators launch it, for a GPU that need not be there.

A process of its own, because Triton is imported either for its interpreter or for its compiler:
``python triton_compile.py "cuda 90" "hip gfx942"`` prints one JSON object for each kernel, in every
dtype and variant; with ``--some`` first, in each dtype and variant for some target alone.
"""

import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
import triton
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget

from clsd_fast.triton import distance_ratio_loss, info_nce, pairwise_similarity, upsample_tail

sys.path.append(str(Path(__file__).parents[2] / "tools"))
from triton_code import Call, compile_options, recorded, source  # noqa: E402 - found there

TARGETS = ("cuda 80", "cuda 90", "cuda 100", "hip gfx942")
DTYPES = ("float32", "float16", "bfloat16")


def contrast(dtype: torch.dtype) -> None:
    """One call of each variant of the contrastive operators."""

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
    learned = rows(dtype=torch.float32)
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


def tail(dtype: torch.dtype) -> None:
    """The tail of EDSR x4, which has every kernel of the others and in more variants."""

    def tensor(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device="meta")

    x = tensor(16, 64, 48, 48, dtype=dtype).to(memory_format=torch.channels_last)
    stages = [tensor(256, 64, 3, 3), tensor(256), tensor(256, 64, 3, 3), tensor(256)]
    out_weight = tensor(3, 64, 3, 3)
    output, composed = upsample_tail.upsample_tail(x, *stages, out_weight, tensor(3), 4)
    upsample_tail.upsample_tail_backward(
        output, x, composed, *stages, out_weight, 4, needs_x=True, needs_params=True
    )


def target_of(name: str) -> GPUTarget:
    backend, architecture = name.split()
    if backend == "cuda":
        return GPUTarget("cuda", int(architecture), 32)
    return GPUTarget("hip", architecture, 64)


def calls(dtype: torch.dtype) -> list[Call]:
    with recorded() as found:
        contrast(dtype)
        if dtype != torch.float16:  # which is bfloat16 to these kernels
            tail(dtype)
    if dtype == torch.float32:
        return found
    # Tails are composed in float32, whatever the images are.
    return [call for call in found if ".tail.compose" not in call.kernel.fn.__module__]


def variants() -> dict[str, list[dict[str, Call]]]:
    """The launches of each kernel, each by dtype."""
    found = {}
    for dtype in DTYPES:
        counts = Counter()
        for call in calls(getattr(torch, dtype)):
            name = call.kernel.fn.__name__
            of_kernel, number = found.setdefault(name, []), counts[name]
            if number == len(of_kernel):
                of_kernel.append({})
            of_kernel[number][dtype] = call
            counts[name] += 1
    return found


def compile_for(name: str, target: str, dtype: str, call: Call) -> dict:
    """What is known of the compiled kernel."""
    gpu = target_of(target)
    specialized = source(call.kernel, call.args, call.options)
    compiled = triton.compile(specialized, target=gpu, options=compile_options(call.options))
    text = compiled.asm["ptx" if gpu.backend == "cuda" else "amdgcn"]
    return {
        "kernel": name,
        "target": target,
        "dtype": dtype,
        "shared": compiled.metadata.shared,
        "mma": any(word in text for word in ("mma.sync", "wgmma", "tcgen05.mma", "v_mfma")),
        "tf32": "tf32" in text,
    }


Triple = tuple[str, str, Call]


def every(of_kernel: list[dict[str, Call]]) -> Iterator[Triple]:
    """Target, dtype and call, in all combinations."""
    for target, by_dtype in itertools.product(TARGETS, of_kernel):
        for dtype, call in by_dtype.items():
            yield target, dtype, call


def some(of_kernel: list[dict[str, Call]], first: int) -> Iterator[Triple]:
    """Those that have each target, each dtype and each variant once, but not in every triple."""
    for step in range(max(len(of_kernel), len(TARGETS))):
        by_dtype = of_kernel[step % len(of_kernel)]
        dtype = list(by_dtype)[(first + step) % len(by_dtype)]
        yield TARGETS[step % len(TARGETS)], dtype, by_dtype[dtype]


def main(*words: str) -> None:
    for number, (name, of_kernel) in enumerate(variants().items()):
        triples = some(of_kernel, number) if "--some" in words else every(of_kernel)
        for target, dtype, call in triples:
            if target in words:
                print(json.dumps(compile_for(name, target, dtype, call)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
