"""The Triton kernels compiled and run on a GPU, at the sizes of training."""

import os

import pytest
import torch
from support import distance_ratio_loss as ratio
from support import info_nce as info
from support import pairwise_similarity as pairwise
from support import upsample_tail as tail
from support.util import channels_last, compare, contiguous, rand, sliced
from torch.library import opcheck

import clsd_fast
from clsd_fast import reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="needs Triton's compiler"),
]

LEARNED = torch.tensor(0.1)


def convolution(channels, outputs, height, width, batch=3):
    """x, weight, bias and a residual."""
    return [
        rand(batch, channels, height, width),
        rand(outputs, channels, 3, 3) / (3 * channels**0.5),
        rand(outputs),
        rand(batch, outputs, height, width, seed=1),
    ]


def block(channels, hidden, height, width):
    x, weight1, bias1, _ = convolution(channels, hidden, height, width)
    _, weight2, bias2, _ = convolution(hidden, channels, height, width)
    return [x, weight1, bias1, weight2, bias2]


CONVOLUTIONS = {
    **{
        f"conv3x3 {channels} to {outputs}": (
            lambda x, w, b, r: clsd_fast.conv3x3(x, w, b, relu=True, residual=r, res_scale=0.1),
            lambda x, w, b, r: reference.conv3x3(x, w, b, r, 0.1, True),
            lambda sizes=(channels, outputs, *size): convolution(*sizes),
        )
        for channels, outputs, size in (
            (64, 64, (48, 50)),
            (3, 64, (37, 51)),
            (64, 3, (51, 37)),
            (20, 100, (33, 7)),
            (256, 16, (9, 96)),
        )
    },
    "residual_block": (
        lambda *t: clsd_fast.residual_block(*t, res_scale=0.1),
        lambda *t: reference.residual_block(*t, 0.1, False)[0],
        lambda: block(16, 24, 19, 21),
    ),
    **{
        f"pixel_shuffle_upsample {factor}": (
            lambda *t, factor=factor: clsd_fast.pixel_shuffle_upsample(*t, factor),
            lambda *t, factor=factor: reference.pixel_shuffle_upsample(*t, factor),
            lambda factor=factor: convolution(32, 40 * factor**2, 18, 20)[:3],
        )
        for factor in (2, 3)
    },
}
# (function of tensors on the GPU, the same in plain PyTorch, tensors)
CASES = {
    **CONVOLUTIONS,
    **{
        f"pairwise_similarity {metric}": (
            lambda *t, metric=metric: clsd_fast.pairwise_similarity(*t, metric),
            lambda *t, metric=metric: pairwise.plain(*t, metric),
            lambda: [rand(3, 200, 130), rand(3, 70, 130, seed=1)],
        )
        for metric in pairwise.METRICS
    },
    **{
        f"info_nce {count} {negatives}": (
            lambda *t: clsd_fast.info_nce(*t, reduction="none", temperature=0.2),
            lambda *t: info.plain(*t, temperature=0.2),
            lambda count=count, negatives=negatives: info.rows((3,), count, 128, negatives),
        )
        for count, negatives in ((64, None), (64, 100), (1000, None), (300, 2000))
    },
    **{
        f"distance_ratio_loss {negatives}": (
            lambda *t: clsd_fast.distance_ratio_loss(*t, reduction="none"),
            ratio.plain,
            lambda negatives=negatives: ratio.rows((2,), 16, 36_864, negatives),
        )
        for negatives in (None, 8)
    },
    **{
        f"upsample_tail {scale}": (
            lambda *t, scale=scale: tail.composed(*t, scale=scale),
            lambda *t, scale=scale: tail.plain(*t, scale=scale),
            lambda scale=scale: tail.inputs(scale, 2, 64, 24, 20, middle=64),
        )
        for scale in tail.SCALES
    },
}


def given(tensors, dtype=torch.float32):
    return [t.to("cuda", dtype).requires_grad_() for t in tensors if t is not None]


@pytest.fixture(autouse=True)
def triton():
    with clsd_fast.use_backend("triton"):
        yield


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [contiguous, channels_last, sliced])
def test_values(name, dtype, layout):
    function, plain, make = CASES[name]

    def on_gpu(*tensors):
        return function(*(t if t is None else layout(t.cuda()) for t in tensors)).cpu()

    compare(on_gpu, plain, make(), dtype)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 3), (3, 4), (4, 1), (5, 5), (9, 7)], ids=str)
@pytest.mark.parametrize("scale", tail.SCALES)
def test_borders_of_the_tail(scale, size, bias):
    tensors = tail.inputs(scale, 2, 17, *size, bias)
    on_gpu = [t if t is None else t.cuda() for t in tensors]
    assert max(tail.differences(scale, on_gpu)) <= tail.EXACT_SHARE


def test_models_compose_their_tails():
    model = clsd_fast.EDSR(4, num_blocks=1, channels=16).cuda()
    lr = torch.rand(2, 3, 9, 8, device="cuda")
    with clsd_fast.use_backend("auto"), torch.backends.cudnn.flags(allow_tf32=False):
        composed = model(lr)
        assert "upsample_tail" in model.tail(model.embed(lr)).grad_fn.name()
        model.tail.collapse = False
        torch.testing.assert_close(composed, model(lr), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("name", CASES)
def test_two_runs_are_bit_equal(name):
    function, _, make = CASES[name]
    tensors = given(make())

    def outputs():
        output = function(*tensors)
        return [output, *torch.autograd.grad(output.sum(), tensors)]

    for first, second in zip(outputs(), outputs(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("options", [{}, {"learned": LEARNED}], ids=["number", "learned"])
def test_operators(options):
    query, key = given([rand(2, 7, 9), rand(2, 7, 9, seed=1)])
    learned = options["learned"].cuda() if options else None
    for reduction in ("none", "mean"):
        arguments = (query, key, None, None, None, learned, 0.3, reduction, False)
        opcheck(torch.ops.clsd_fast.info_nce, arguments)
    opcheck(torch.ops.clsd_fast.pairwise_similarity, (query, key, "cosine"))
    opcheck(torch.ops.clsd_fast.distance_ratio_loss, (query, key, None, 0.1))


@pytest.mark.parametrize("name", CASES)
def test_cuda_graph(name):
    function, _, make = CASES[name]
    tensors = given(make())

    def step():
        output = function(*tensors)
        return [output, *torch.autograd.grad(output.sum(), tensors)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = step()  # compiles the kernels, which a capture does not allow
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    for ours, theirs in zip(captured, expected, strict=True):
        assert torch.equal(ours, theirs)
