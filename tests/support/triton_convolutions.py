"""Compiles the convolutions' Triton kernels for GPUs that need not be there.

A process of its own, because Triton is imported either for its interpreter or for its compiler:
``python triton_convolutions.py 16-bit "cuda 90" "hip gfx942"`` prints one JSON object for each
kernel and variant, of that arithmetic and 64 channels, as the table has it for each target.
"""

import json
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from unittest.mock import patch

import torch
import triton
from torch import Tensor

from clsd_fast.triton import conv3x3, conv3x3s, pixel_shuffle_upsample, residual_blocks
from clsd_fast.triton.conv import configurations

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "tools")]
import triton_code  # noqa: E402 - found there
from triton_code import Call, compile_options, recorded, source  # noqa: E402

from support.triton_compile import target_of  # noqa: E402

DTYPES = {
    "16-bit": torch.bfloat16,
    "tf32": torch.float32,
    "float32": torch.float32,
    "float64": torch.float64,
}
PRODUCTS = ("conv3x3_kernel", "conv3x3_weight_grad_kernel")
PATCH = (16, 64, 48, 48)


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    empty = torch.empty(shape, dtype=dtype, device="meta")
    return empty.to(memory_format=torch.channels_last) if len(shape) == 4 else empty


def chain(dtype: torch.dtype) -> None:
    """Two residual blocks, of which the first map has a gradient of its own: all that EDSR's body
    launches."""
    parameters = torch.float32 if dtype.itemsize == 2 else dtype
    x = tensor(*PATCH, dtype=dtype)
    weights = [tensor(64, 64, 3, 3, dtype=parameters) for _ in range(2)]
    biases = [tensor(64, dtype=parameters) for _ in weights]
    maps, hiddens = residual_blocks.residual_blocks(
        [x], weights, biases, weights, biases, 0.1, [1, 2], True
    )
    residual_blocks.residual_blocks_backward(
        maps, [1, 2], [x], maps[:1], hiddens, weights, weights, 0.1, True, True
    )


def others(dtype: torch.dtype) -> None:
    """What only other operators launch: colours, branches, activations and pixel shuffles."""
    needs = (True, True, True)
    for channels, outputs in ((3, 64), (64, 3)):
        x, y = (tensor(16, c, 48, 48, dtype=dtype) for c in (channels, outputs))
        weight, bias = tensor(outputs, channels, 3, 3), tensor(outputs)
        conv3x3.conv3x3(x, weight, bias, None, 1.0, False)
        conv3x3.conv3x3_backward(y, x, weight, 1.0, *needs)
    x, weight, bias = tensor(*PATCH, dtype=dtype), tensor(64, 64, 3, 3), tensor(64)
    conv3x3.conv3x3(x, weight, bias, None, 1.0, True, 0.2)
    conv3x3.conv3x3(x, weight, bias, x, 1.0, True, 0.0, bias)
    conv3x3s.conv3x3s([x] * 3, [weight] * 3, [bias] * 3, x)
    conv3x3s.conv3x3s_backward([x] * 3, [x] * 3, [weight] * 3, True, True, False)
    shuffled, weight = tensor(16, 64, 96, 96, dtype=dtype), tensor(256, 64, 3, 3)
    pixel_shuffle_upsample.pixel_shuffle_upsample(x, weight, tensor(256), 2)
    pixel_shuffle_upsample.pixel_shuffle_upsample_backward(shuffled, x, weight, 2, *needs)


def on_architecture(name: str) -> AbstractContextManager:
    """Tensors that lie nowhere are on such a GPU."""
    return patch.object(configurations, "architecture", lambda device: name)


def calls(target: str, arithmetic: str) -> list[Call]:
    """Every different launch, and one of each kernel without products."""
    backend, number = target.split()
    architecture = f"sm_{number}" if backend == "cuda" else number
    torch.set_float32_matmul_precision("high" if arithmetic == "tf32" else "highest")
    with on_architecture(architecture), recorded() as found:
        chain(DTYPES[arithmetic])
        if arithmetic == "16-bit":
            others(DTYPES[arithmetic])
    different: dict[object, Call] = {}
    for call in found:
        specialized = source(call.kernel, call.args, call.options)
        key = (str(specialized.signature), str(specialized.constants))
        # What multiplies nothing is alike in all variants.
        is_product = call.kernel.fn.__name__ in PRODUCTS
        different.setdefault((call.kernel, key if is_product else None), call)
    return list(different.values())


def compile_for(target: str, found: Sequence[Call]) -> list[dict]:
    """What is known of the compiled kernels."""
    gpu = target_of(target)
    kernels = [
        triton.compile(
            source(call.kernel, call.args, call.options),
            target=gpu,
            options=compile_options(call.options),
        )
        for call in found
    ]
    if gpu.backend == "cuda":
        suffix = "a" if gpu.arch >= 90 else ""
        kinds = triton_code.kinds([k.asm["cubin"] for k in kernels], f"sm_{gpu.arch}{suffix}")
        uses = list(map(of_nvidia, kinds))
    else:
        uses = [of_amd(kernel.asm["amdgcn"]) for kernel in kernels]
    return [
        {"kernel": call.kernel.fn.__name__, "target": target, "shared": k.metadata.shared, **used}
        for call, k, used in zip(found, kernels, uses, strict=True)
    ]


def of_nvidia(kinds: Sequence[str]) -> dict:
    return {
        "products": sorted({kind for kind in kinds if kind.endswith("MMA")}),
        "spilled": sum(kind in ("LDL", "STL") for kind in kinds),
    }


def of_amd(text: str) -> dict:
    fields = r"\.(?:[sv]gpr_spill_count|private_segment_fixed_size):\s+(\d+)"
    return {
        "products": ["MFMA"] if "v_mfma" in text else [],
        "spilled": sum(map(int, re.findall(fields, text))),
    }


def main(arithmetic: str, *targets: str) -> None:
    for target in targets:
        for kernel in compile_for(target, calls(target, arithmetic)):
            print(json.dumps(kernel), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
