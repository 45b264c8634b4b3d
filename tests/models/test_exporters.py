"""What exporters record of models on the default backend, and what their files need."""

import io
import os
import subprocess
import sys
import warnings

import onnx
import onnxruntime
import pytest
import torch
from support.grids import cover
from support.plain_edsr import PlainEDSR
from torch import nn

import clsd_fast
from clsd_fast import CLSD, EDSR
from clsd_fast.nn import (
    Conv3x3,
    DistanceRatioLoss,
    FeatureRatioLoss,
    InfoNCELoss,
    MeanShift,
    PatchNCELoss,
    PixelShuffleUpsampler,
    ResidualBlock,
    ResidualBlocks,
    UpsampleTail,
)

SIZES = [(2, 16, 24), (1, 31, 17), (3, 5, 1)]
DYNAMIC = (dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO),)
AXES = {"x": {0: "n", 2: "h", 3: "w"}}


class Functions(nn.Module):
    """The operators as functions."""

    def __init__(self, scale):
        super().__init__()
        self.block, self.tail = ResidualBlock(8), UpsampleTail(scale, 8)

    def forward(self, x):
        first, second = self.block._convs()
        pairs = [[conv.weight, conv.bias] for conv in (first, second)]
        x = clsd_fast.conv3x3(x, *pairs[0], relu=True, residual=x)
        x = second(x, x, activation="leaky_relu", negative_slope=0.2)
        x = clsd_fast.residual_block(x, *pairs[0], *pairs[1], 0.5)
        x, _ = clsd_fast.residual_blocks(x, *([t] for pair in pairs for t in pair))
        return clsd_fast.upsample_tail(x, *self.tail._parameters_of_all(), self.tail.upscale_factor)


#: Makes a model, and the channels of its images.
MODELS = {
    "EDSR x2": (lambda: EDSR(2, 2, 8, 0.5), 3),
    "EDSR x3": (lambda: EDSR(3, 2, 8, value_range=1.0), 3),
    "EDSR x4, composed": (lambda: EDSR(4, 2, 8, collapse=True), 3),
    "EDSR, res_scale a tensor": (lambda: EDSR(2, 2, 8, torch.tensor(0.5)), 3),
    "CLSD": (lambda: CLSD(EDSR(2, 2, 8), taps=(1,), head_blocks=1), 3),
    "functions x2": (lambda: Functions(2), 8),
    "functions x4": (lambda: Functions(4), 8),
    "Conv3x3": (lambda: nn.Sequential(Conv3x3(8, 4)), 8),
    "MeanShift": (lambda: MeanShift(255.0, (0.4, 0.5, 0.6), 1), 3),
    "ResidualBlocks": (lambda: ResidualBlocks(ResidualBlock(8), ResidualBlock(8)), 8),
    "PixelShuffleUpsampler": (lambda: PixelShuffleUpsampler(3, 8), 8),
    "UpsampleTail, composed": (lambda: UpsampleTail(2, 8, collapse=True), 8),
    "accelerated": (lambda: clsd_fast.accelerate(PlainEDSR(2, 2, 8)), 3),
}
SHUFFLE = ("EDSR", "CLSD", "functions", "PixelShuffle", "Upsample", "accelerated")


def made(name):
    torch.manual_seed(0)
    make, channels = MODELS[name]
    return make().eval(), channels


def images(size, channels):
    batch, height, width = size
    generator = torch.Generator().manual_seed(height)
    return torch.rand(batch, channels, height, width, generator=generator)


def assert_same(program, model, channels, tolerance=1e-5):
    for size in SIZES:
        x = images(size, channels)
        with torch.no_grad():
            found, expected = program(x), model(x)
        white = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * white)


def by_dynamo(model, x):
    program = torch.onnx.export(model, (x,), dynamic_shapes=DYNAMIC, dynamo=True, verbose=False)
    return program.model_proto.SerializeToString()


def by_torchscript(model, x):
    file = io.BytesIO()
    torch.onnx.export(model, (x,), file, input_names=["x"], dynamic_axes=AXES, dynamo=False)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@cover(quick=2, name=[*MODELS], export=[by_dynamo, by_torchscript])
def test_onnx_of_standard_operators_and_any_size(name, export):
    model, channels = made(name)
    file = export(model, images(SIZES[0], channels))
    graph = onnx.load_from_string(file)
    assert {node.domain for node in graph.graph.node} == {""} and not graph.functions
    shuffles = "DepthToSpace" in {node.op_type for node in graph.graph.node}
    assert shuffles == name.startswith(SHUFFLE)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (argument,) = session.get_inputs()

    def run(x):
        return torch.from_numpy(session.run(None, {argument.name: x.numpy()})[0])

    assert_same(run, model, channels)


def traced(model, x):
    """By ``torch.jit.trace``, which is deprecated and warns of whatever depends on the size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.trace(model, x)


@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
@cover(quick=3, name=[name for name in MODELS if not name.startswith("functions")])
def test_a_trace_is_of_any_size(name):
    model, channels = made(name)
    assert_same(traced(model, images(SIZES[0], channels)), model, channels)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of the checks, which stay true
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_trace_of_functions_is_of_any_size(scale):
    model = Functions(scale)
    assert_same(traced(model, images(SIZES[0], 8)), model, 8)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_of_16_bit_images_beside_float32_parameters():
    model, channels = made("EDSR x2")
    model.sub_mean = model.add_mean = nn.Identity()  # which would make float32 of them
    x = images(SIZES[0], channels).bfloat16()
    program = traced(model, x)
    x = images(SIZES[1], channels).bfloat16()
    torch.testing.assert_close(program(x), model(x), rtol=0.05, atol=0.05)


ELSEWHERE = """
import io, sys, torch
trace, plain, kept, x, expected = sys.argv[1:]
x, expected = torch.load(x), torch.load(expected)
for program in (torch.jit.load(trace), torch.export.load(plain).module()):
    torch.testing.assert_close(program(x), expected, rtol=0, atol=1e-3)
assert "clsd_fast" not in sys.modules
print("ran")
torch.export.load(kept)
"""


@pytest.mark.thorough
def test_what_files_need_where_this_package_is_not_imported(native, tmp_path):
    """A trace and a program of the reference backend need PyTorch alone. Of the default backend's,
    PyTorch says which operators to import."""
    model, channels = made("EDSR x4, composed")
    x, other = (images(size, channels) for size in SIZES[:2])
    trace, plain, kept, given, expected = (tmp_path / name for name in "tpkge")
    traced(model, x).save(trace)
    with clsd_fast.use_backend("reference"):
        program = torch.export.export(model, (x,), dynamic_shapes=DYNAMIC)
    assert all("clsd_fast" not in str(node.target) for node in program.graph.nodes)
    assert any("pixel_shuffle" in str(node.target) for node in program.graph.nodes)
    torch.export.save(program, plain)
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=DYNAMIC), kept)
    torch.save(other, given)
    torch.save(model(other).detach(), expected)
    result = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *map(str, (trace, plain, kept, given, expected))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert result.stdout == "ran\n", result.stderr
    assert result.returncode != 0
    assert "failed to resolve torch.ops.clsd_fast.conv3x3.default" in result.stderr
    assert "import the custom op" in result.stderr
    torch.testing.assert_close(torch.export.load(kept).module()(other), model(other))


LEAVES = ["sub_mean", "head.0", "body.0", "body.1", "body.2", "tail", "add_mean"]


def called(graph):
    return [node.target for node in graph.nodes if node.op == "call_module"]


def test_fx_has_the_modules_as_leaves(backend):
    model, channels = made("EDSR x2")
    symbolic = torch.fx.symbolic_trace(model)
    assert called(symbolic.graph) == LEAVES
    assert_same(symbolic, model, channels)
    model, channels = made("CLSD")
    symbolic = torch.fx.symbolic_trace(model)
    assert called(symbolic.graph) == [f"student.{name}" for name in LEAVES]
    assert_same(symbolic, model, channels)


class NodePaths(torch.fx.Tracer):
    """A tracer that names nodes by the module they come from, as feature extractors do."""

    def __init__(self):
        super().__init__()
        self.current, self.names = "", {}

    def call_module(self, module, forward, args, kwargs):
        before, self.current = self.current, self.path_of_module(module)
        try:
            return super().call_module(module, forward, args, kwargs)
        finally:
            self.current = before

    def create_proxy(self, kind, *args, **kwargs):
        proxy = super().create_proxy(kind, *args, **kwargs)
        if kind == "call_module":
            self.names[self.current] = proxy.node
        return proxy


def test_fx_extracts_features_by_name(backend):
    model, channels = made("EDSR x2")
    tracer = NodePaths()
    graph = tracer.trace(model)
    assert [*tracer.names] == LEAVES
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = ({name: tracer.names[name] for name in ("body.1", "tail")},)
    features = torch.fx.GraphModule(model, graph)
    expected = {}
    for name in ("body.1", "tail"):
        module = model.get_submodule(name)
        module.register_forward_hook(lambda *call, name=name: expected.update({name: call[-1]}))
    x = images(SIZES[1], channels)
    found = features(x)
    model(x)
    torch.testing.assert_close(found, expected)


ROOTS = [name for name in MODELS if name not in ("functions x2", "functions x4")]


@pytest.mark.parametrize("name", ROOTS)
def test_fx_traces_what_is_the_root(name):
    model, channels = made(name)
    options = {"maps": None} if name == "ResidualBlocks" else None
    assert_same(torch.fx.symbolic_trace(model, options), model, channels)


class Contrasts(nn.Module):
    def __init__(self):
        super().__init__()
        self.info_nce, self.ratio = InfoNCELoss(), DistanceRatioLoss()
        self.patches, self.features = PatchNCELoss(), FeatureRatioLoss()

    def forward(self, maps):
        rows, positions = maps.flatten(1), torch.arange(6)
        losses = [self.info_nce(query=rows, positive_key=-rows), self.ratio(rows, positive=rows)]
        losses += [self.patches(maps, -maps, positions), self.features(maps, target=-maps)]
        return torch.stack(losses)


def test_fx_has_losses_as_leaves(backend):
    model, maps = Contrasts(), torch.rand(4, 2, 3, 2)
    symbolic = torch.fx.symbolic_trace(model)
    assert called(symbolic.graph) == ["info_nce", "ratio", "patches", "features"]
    torch.testing.assert_close(symbolic(maps), model(maps))


class Halved(ResidualBlock):
    def forward(self, x):
        return 0.5 * super().forward(x)


def test_fx_traces_once_what_a_leaf_would_do_again():
    """A forward or a hook around that of this package is in the graph, and not in a leaf, too."""
    model, x = nn.Sequential(Halved(4), ResidualBlock(4), ResidualBlock(4)), torch.rand(1, 4, 5, 6)
    model[1].register_forward_hook(lambda module, args, output: 2 * output)
    original = model[2].forward
    model[2].forward = lambda x: original(x) - 1
    symbolic = torch.fx.symbolic_trace(model)
    blocks = [f"{block}.body.{layer}" for block in range(3) for layer in range(3)]
    assert called(symbolic.graph) == blocks
    torch.testing.assert_close(symbolic(x), model(x))
