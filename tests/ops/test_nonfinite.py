"""NaN and infinities: where they go, in the losses and in convolutions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support import upsample_tail as tail
from support.nonfinite import FUNCTIONS, VALUES, go_where_the_reference_sends_them, kinds, results
from torch import Tensor

import clsd_fast
from clsd_fast._library import SCHEMAS
from clsd_fast.backend import native as native_backend

DTYPES = (torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_losses_send_them_where_the_reference_does(native, name, dtype):
    go_where_the_reference_sends_them(name, dtype)


def plain_info_nce(query, key, mask):
    logits = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT / 0.07
    own = torch.eye(len(query), dtype=torch.bool)
    logits = logits.masked_fill(mask & ~own, -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(query)), reduction="none")


def plain_ratio(anchor, positive):
    table = (anchor.unsqueeze(-2) - positive.unsqueeze(-3)).abs().mean(-1)
    own = table.diagonal(dim1=-2, dim2=-1)
    return own / ((table.sum(-1) - own) / (len(anchor) - 1) + 1e-7)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("at", [0, 1])
def test_the_reference_sends_them_where_the_formula_does(backend, value, at):
    generator = torch.Generator().manual_seed(at)
    rows = [torch.randn(7, 9, generator=generator) for _ in range(2)]
    rows[at][2, 4] = value
    mask = torch.rand(7, 7, generator=generator) > 0.5
    pairs = [
        (
            lambda q, k: clsd_fast.info_nce(q, k, mask=mask, reduction="none"),
            lambda q, k: plain_info_nce(q, k, mask),
        ),
        (lambda a, p: clsd_fast.distance_ratio_loss(a, p, reduction="none"), plain_ratio),
    ]
    for ours, plain in pairs:
        assert torch.equal(kinds(ours(*rows)), kinds(plain(*rows)))


def test_relu_passes_the_gradient_of_a_nan(backend):
    """As PyTorch's, of the operators that fuse it."""
    x, weight = torch.randn(1, 5, 4, 4), torch.randn(7, 5, 3, 3)
    x[0, 0, 0, 0] = float("nan")
    back = torch.randn(5, 7, 3, 3)

    def block(x, weight, back):
        return clsd_fast.residual_block(x, weight, None, back, None)

    def plain(x, weight, back):
        return x + F.conv2d(F.relu(F.conv2d(x, weight, padding=1)), back, padding=1)

    tensors = [x, weight, back]
    for a, b in zip(results(block, tensors), results(plain, tensors), strict=True):
        assert torch.equal(kinds(a), kinds(b))
        finite = kinds(b) == 0
        torch.testing.assert_close(a[finite], b[finite], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", tail.SCALES)
@pytest.mark.parametrize("row, column", [(4, 5), (0, 7)])
def test_tails_send_them_where_the_layers_do(backend, scale, row, column):
    """From a pixel of the images, and from one of the output's gradient."""
    x, *parameters = (t.float() for t in tail.inputs(scale, 1, 3, 9, 8))
    grad = torch.ones_like(tail.plain(x, *parameters, scale=scale))
    x[..., row, column] = grad[..., scale * row, scale * column] = float("nan")
    x.requires_grad_()
    for of in (lambda t: t.detach(), lambda t: torch.autograd.grad(t, x, grad)[0]):
        ours, theirs = (of(f(x, *parameters, scale=scale)) for f in (tail.composed, tail.plain))
        assert torch.equal(ours.isnan(), theirs.isnan())


def output_and_gradients(x: Tensor, weight: Tensor, grad: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    output = clsd_fast.conv3x3(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def outliers(value: float, in_gradient: bool, dtype: torch.dtype):
    """A convolution of 16 channels, with one value in the images or in the output's gradient."""
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(1, 16, 24, 24, generator=generator).to(dtype) for _ in range(2))
    weight = (torch.randn(16, 16, 3, 3, generator=generator) / 12).to(dtype)
    (grad if in_gradient else x)[0, 3, 9, 13] = value
    ours = output_and_gradients(x, weight, grad)
    with clsd_fast.use_backend("reference"):
        return ours, output_and_gradients(x, weight, grad)


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_winograd_spreads_them_over_its_tiles(native, value):
    """As the documents say: outputs of 4x4 squares, or 2e-7 of the value."""
    (ours, *_), (expected, *_) = outliers(value, False, torch.float32)
    if value == 1e6:
        seen = torch.zeros(24, 24, dtype=torch.bool)
        seen[8:11, 12:15] = True
        error = (ours - expected).abs()[..., ~seen].max()
        assert 1e-3 < error < 2e-7 * value
        return
    lost = ours.isnan().all(1)[0]
    squares = lost.reshape(6, 4, 6, 4).movedim(2, 1)
    assert torch.equal(squares, squares[..., :1, :1].expand_as(squares))
    assert expected.isnan().all(1).sum() == 9 < lost.sum() <= 4 * 16


def spread_of_a_tail() -> torch.Tensor:
    """Which pixels of the output lose their value by one NaN, tail x4 of 16 channels."""
    x, *parameters = (t.float() for t in tail.inputs(4, 1, 16, 16, 16))
    x[0, 3, 7, 8] = float("nan")
    return tail.composed(x, *parameters, scale=4).isnan().all(1)[0]


def test_winograd_spreads_them_over_the_squares_of_a_tail(native):
    """As the documents say: outputs of the 5x5 pixels around it, where the layers lose 18x18."""
    lost = torch.zeros(64, 64, dtype=torch.bool)
    lost[4 * 5 : 4 * 10, 4 * 6 : 4 * 11] = True
    assert torch.equal(spread_of_a_tail(), lost)


def run(program: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
    )


def check_direct() -> None:
    """In a process with CLSD_FAST_CONV=direct."""
    for value in (*VALUES, 1e6, 1e9, 1e38):
        for in_gradient in (False, True):
            for dtype in (torch.float32, torch.float64):
                for a, b in zip(*outliers(value, in_gradient, dtype), strict=True):
                    assert torch.equal(kinds(a), kinds(b)), (value, in_gradient, dtype)
                    finite = (kinds(b) == 0) & (b.abs() < 1e3)
                    torch.testing.assert_close(a[finite], b[finite], rtol=1e-4, atol=1e-4)
    assert spread_of_a_tail().sum() == 18 * 18


def test_direct_convolutions_have_pytorchs_footprint(native):
    path = Path(__file__)
    program = (
        "import runpy; runpy.run_path("
        f"{str(path)!r}, run_name='in_process')['check_direct'](); "
        "from clsd_fast import env; print(env.report()['CPU convolutions'])"
    )
    result = run(program, CLSD_FAST_CONV="direct", CLSD_FAST_BACKEND="native")
    assert result.stdout == "direct\n", result.stderr


def test_other_values_of_the_variable_are_refused():
    result = run("import clsd_fast", CLSD_FAST_CONV="winograd")
    last = result.stderr.splitlines()[-1]
    sentence = "CLSD_FAST_CONV: expected one of auto, direct, got 'winograd'"
    assert last == f"ValueError: {sentence}"


@pytest.mark.thorough
def test_the_library_refuses_them_itself(native):
    """Which programs load without this package."""
    program = f"""
import torch
library = torch.library.Library("clsd_fast", "FRAGMENT")
library.define({"conv3x3" + SCHEMAS["conv3x3"]!r})
torch.ops.load_library({str(native_backend.LIBRARY)!r})
x, weight = torch.ones(1, 16, 8, 8), torch.ones(16, 16, 3, 3)
try:
    torch.ops.clsd_fast.conv3x3(x, weight, None, None, 1.0, False)
except RuntimeError as error:
    print(str(error).splitlines()[0])
"""
    result = run(program, CLSD_FAST_CONV="fast")
    assert result.stdout == "CLSD_FAST_CONV: expected one of auto, direct, got 'fast'\n"
