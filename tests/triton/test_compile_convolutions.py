"""The convolutions' Triton kernels, as the table has them, compile for GPUs that are not there."""

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
#: The instruction that multiplies matrices.
PRODUCTS = {
    **dict.fromkeys(("cuda 80", "cuda 86", "cuda 89", "cuda 120"), "HMMA"),
    **{"cuda 90": "HGMMA", "cuda 100": "UTCHMMA"},
    **dict.fromkeys(("hip gfx90a", "hip gfx942"), "MFMA"),
}
MULTIPLY = {"conv3x3_kernel", "conv3x3_weight_grad_kernel"}
KERNELS = MULTIPLY | {f"conv3x3_{name}_kernel" for name in ("pack", "bias_grad", "sum")}
#: Least shared memory of a block: of AMD's, and of the smallest GPUs of compute capability 8.x.
SHARED_BYTES = {"cuda": 99 * 1024, "hip": 64 * 1024}


def run(program, cache, *words):
    """The JSON objects that a program prints, one a line."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    path = Path(__file__).parents[1] / "support" / f"{program}.py"
    output = subprocess.run(
        [sys.executable, path, *words], env=environment, capture_output=True, text=True
    )
    assert output.returncode == 0, output.stderr[-2000:]
    return [json.loads(line) for line in output.stdout.splitlines() if line.startswith('{"')]


def check(kernel):
    assert kernel["spilled"] == 0, kernel
    assert kernel["shared"] <= SHARED_BYTES[kernel["target"].split()[0]], kernel


@pytest.mark.parametrize("targets", list(zip(*[iter(PRODUCTS)] * 2, strict=True)), ids=" ".join)
def test_16_bit(tmp_path, targets):
    """Two targets a process, which takes seconds to start."""
    kernels = run("triton_convolutions", tmp_path, "16-bit", *targets)
    for target in targets:
        check_16_bit(target, [kernel for kernel in kernels if kernel["target"] == target])


def check_16_bit(target, kernels):
    assert {kernel["kernel"] for kernel in kernels} == KERNELS
    for kernel in kernels:
        check(kernel)
        # Of few channels, there may be fewer rows than a warpgroup multiplies.
        accepted = {PRODUCTS[target], "HMMA"}
        assert (kernel["kernel"] in MULTIPLY) == bool(accepted & {*kernel["products"]}), kernel
    named = [kernel for kernel in kernels if kernel["kernel"] in MULTIPLY]
    others = [kernel for kernel in named if PRODUCTS[target] not in kernel["products"]]
    assert len(others) <= 1, others


@pytest.mark.parametrize("arithmetic", ["tf32", "float32", "float64"])
def test_other_arithmetic(tmp_path, arithmetic):
    """NVIDIA has no products of matrices of float32."""
    targets = ("cuda 80", "cuda 90", "hip gfx90a")
    kernels = run("triton_convolutions", tmp_path, arithmetic, *targets)
    assert {kernel["target"] for kernel in kernels} == {*targets}
    for kernel in kernels:
        check(kernel)
        if kernel["kernel"] in MULTIPLY and arithmetic != "float64":
            has_products = arithmetic == "tf32" or kernel["target"].startswith("hip")
            assert bool(kernel["products"]) is has_products, kernel


#: Least shares of the tensor cores' peak, of a convolution and of the gradient of its weight, by
#: the model of `sass_time`: it has an H100's L2 cache bind the former.
SHARES = {"a100": (0.35, 0.35), "h100": (0.22, 0.25)}


@pytest.mark.parametrize("card", SHARES)
def test_shares_of_the_peak(tmp_path, card):
    if lacking := sass_report.missing():
        pytest.skip(f"needs {lacking}")
    of_convolution, of_gradient = SHARES[card]
    predictions = run("triton_shares", tmp_path, card)
    counts = {name: sum(p["kernel"] == name for p in predictions) for name in MULTIPLY}
    assert counts == {"conv3x3_kernel": 5, "conv3x3_weight_grad_kernel": 1}
    for prediction in predictions:
        is_gradient = "grad" in prediction["kernel"]
        least = of_gradient if is_gradient else of_convolution
        assert prediction["share"] >= least, prediction
