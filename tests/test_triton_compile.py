"""Every Triton kernel compiles for every kind of GPU, without one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from clsd_fast import _triton

pytestmark = pytest.mark.skipif(
    _triton.missing is not None, reason=f"needs Triton: {_triton.missing}"
)

TESTS = Path(__file__).parent
#: Kernels that multiply matrices.
PRODUCTS = {
    "pairwise_similarity_forward_kernel",
    "pairwise_similarity_grad_kernel",
    "info_nce_forward_kernel",
    "info_nce_query_grad_kernel",
    "info_nce_key_grad_kernel",
}


@pytest.mark.parametrize(
    "target, dtype",
    [
        ("cuda 80", "float16"),
        ("cuda 80", "float32"),
        ("cuda 90", "bfloat16"),
        ("cuda 90", "float32"),
        ("cuda 100", "float16"),
        ("cuda 100", "bfloat16"),
        ("hip gfx942", "bfloat16"),
        ("hip gfx942", "float32"),
    ],
)
def test_compiles_ahead_of_time(target, dtype):
    """16-bit products run on tensor cores; those of float32 are not rounded to TF32."""
    program = [sys.executable, TESTS / "triton_compile.py", *target.split(), dtype]
    result = subprocess.run(program, cwd=TESTS, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    kernels = [json.loads(line) for line in result.stdout.splitlines()]
    assert {kernel["kernel"] for kernel in kernels} > PRODUCTS
    assert not any(kernel["tf32"] for kernel in kernels)
    if dtype != "float32":
        assert all(kernel["mma"] for kernel in kernels if kernel["kernel"] in PRODUCTS)
