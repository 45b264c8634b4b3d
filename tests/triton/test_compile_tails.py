"""What the machine code of the tails' Triton kernels has, for GPUs that are not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sass_report

from clsd_fast.backend import triton as triton_backend

pytestmark = [
    pytest.mark.skipif(
        triton_backend.missing is not None, reason=f"needs Triton: {triton_backend.missing}"
    ),
    pytest.mark.thorough,
]
#: Barriers of a loop that multiplies, the most of the targets: Hopper reads both operands of a
#: product from shared memory, where earlier GPUs exchange each of the five by itself.
BARRIERS = {
    "tail_products_kernel": 3,
    "tail_forward_kernel": 4,
    "tail_images_grad_kernel": 4,
    "tail_weights_grad_kernel": 10,
    "tail_stage_grad_kernel": 3,
    "tail_after_grad_kernel": 3,
}
OTHERS = {
    f"tail_{name}_kernel"
    for name in ("compose", "lay_out", "composed_grad", "products_grad", "after_sum")
}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    if lacking := sass_report.missing():
        pytest.skip(f"needs {lacking}")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    environment.pop("TRITON_INTERPRET", None)
    program = Path(__file__).parents[1] / "support" / "triton_tails.py"
    output = subprocess.run(
        [sys.executable, program, "h100", "a100"], env=environment, capture_output=True, text=True
    )
    assert output.returncode == 0, output.stderr[-2000:]
    return [json.loads(line) for line in output.stdout.splitlines() if line.startswith('{"')]


@pytest.mark.parametrize("card", ["H100", "A100"])
def test_loops(kernels, card):
    """No loop divides integers, and none of those that sum waits for other threads."""
    found = {kernel["kernel"]: kernel for kernel in kernels if kernel["card"] == card}
    assert found.keys() == BARRIERS.keys() | OTHERS
    for name, kernel in found.items():
        assert not any(kernel["divisions"]), kernel
        assert max(kernel["barriers"], default=0) <= BARRIERS.get(name, 0), kernel
        assert len(kernel["barriers"]) >= (name in BARRIERS), kernel
        assert kernel["spilled"] == 0, kernel
