"""Every Triton kernel compiles for GPUs that need not be there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clsd_fast.backend import triton as triton_backend

pytestmark = [
    pytest.mark.skipif(
        triton_backend.missing is not None, reason=f"needs Triton: {triton_backend.missing}"
    ),
    pytest.mark.thorough,
]

PRODUCTS = {
    "pairwise_similarity_forward_kernel",
    "pairwise_similarity_grad_kernel",
    "info_nce_forward_kernel",
    "info_nce_query_grad_kernel",
    "info_nce_key_grad_kernel",
}
OTHERS = {
    "row_norms_kernel",
    "pairwise_l1_forward_kernel",
    "pairwise_l1_grad_kernel",
    "distance_ratio_loss_forward_kernel",
    "distance_ratio_loss_finish_kernel",
    "distance_ratio_loss_anchor_grad_kernel",
    "distance_ratio_loss_others_grad_kernel",
}
#: Of the tail, for float32 and bfloat16.
TAIL_PRODUCTS = {
    "tail_forward_kernel",
    "tail_images_grad_kernel",
    "tail_weights_grad_kernel",
}
TAIL_OTHERS = {
    "tail_lay_out_kernel",
    "tail_composed_grad_kernel",
}
#: For float32.
TAIL_COMPOSITION = {
    "tail_products_kernel",
    "tail_compose_kernel",
    "tail_products_grad_kernel",
    "tail_stage_grad_kernel",
    "tail_after_grad_kernel",
    "tail_after_sum_kernel",
}
#: Least shared memory of a block: of gfx942, and of the smallest GPUs of compute capability 8.x.
SHARED_BYTES = {"cuda": 99 * 1024, "hip": 64 * 1024}
#: For which each kernel is compiled in every dtype and variant; for others, in a share of them,
#: which is each dtype and variant once over all targets.
TARGET = "cuda 90"
OTHER_TARGETS = ["cuda 80", "cuda 100", "hip gfx942"]
DTYPES = ["float32", "float16", "bfloat16"]


def compiled(cache, *words):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    program = Path(__file__).parents[1] / "support" / "triton_compile.py"
    command = [sys.executable, program, *words]
    output = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert output.returncode == 0, output.stderr[-2000:]
    return [json.loads(line) for line in output.stdout.splitlines() if line.startswith('{"')]


def names(kernels, dtype=None):
    return {kernel["kernel"] for kernel in kernels if dtype in (None, kernel["dtype"])}


def check(kernel):
    assert kernel["shared"] <= SHARED_BYTES[kernel["target"].split()[0]], kernel
    assert not kernel["tf32"], kernel
    # AMD has matrix instructions of true float32, NVIDIA has not.
    if kernel["dtype"] != "float32" and kernel["kernel"] in PRODUCTS | TAIL_PRODUCTS:
        assert kernel["mma"], kernel


def test_every_kernel_compiles(tmp_path):
    kernels = compiled(tmp_path, "--some", *OTHER_TARGETS)
    assert names(kernels) == PRODUCTS | OTHERS | TAIL_PRODUCTS | TAIL_OTHERS | TAIL_COMPOSITION
    for kernel in kernels:
        check(kernel)


def test_every_kernel_compiles_in_every_dtype_and_variant(tmp_path):
    kernels = compiled(tmp_path, TARGET)
    for dtype in DTYPES:
        expected = PRODUCTS | OTHERS
        if dtype != "float16":
            expected |= TAIL_PRODUCTS | TAIL_OTHERS
        if dtype == "float32":
            expected |= TAIL_COMPOSITION
        assert names(kernels, dtype) == expected, dtype
    for kernel in kernels:
        check(kernel)
