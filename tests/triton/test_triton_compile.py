"""Every Triton kernel compiles for GPUs that need not be there, in processes of their own."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clsd_fast.backend import triton as triton_backend

pytestmark = pytest.mark.skipif(
    triton_backend.missing is not None, reason=f"needs Triton: {triton_backend.missing}"
)

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
    "tail_weights_kernel",
    "tail_unshuffle_kernel",
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


DTYPES = ("float32", "float16", "bfloat16")
TARGETS = ("cuda 80", "cuda 90", "cuda 100", "hip gfx942")


def compile_for(target, cache):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    program = Path(__file__).parents[1] / "support" / "triton_compile.py"
    return subprocess.run(
        [sys.executable, program, *target.split(), *DTYPES],
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def compilations(tmp_path_factory):
    """All of them, two at a time; a process takes seconds to start, so it has all dtypes."""
    cache = tmp_path_factory.mktemp("triton")
    with ThreadPoolExecutor(2) as pool:
        yield {target: pool.submit(compile_for, target, cache) for target in TARGETS}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles(compilations, target, dtype):
    output = compilations[target].result()
    assert output.returncode == 0, output.stderr[-2000:]
    facts = [json.loads(line) for line in output.stdout.splitlines() if line.startswith('{"')]
    kernels = [kernel for kernel in facts if kernel["dtype"] == dtype]
    expected = PRODUCTS | OTHERS
    if dtype != "float16":
        expected |= TAIL_PRODUCTS | TAIL_OTHERS
    if dtype == "float32":
        expected |= TAIL_COMPOSITION
    assert {kernel["kernel"] for kernel in kernels} == expected
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_BYTES[target.split()[0]]
        assert not kernel["tf32"]
        # AMD has matrix instructions of true float32, NVIDIA has not.
        if dtype != "float32" and kernel["kernel"] in PRODUCTS | TAIL_PRODUCTS:
            assert kernel["mma"]
