import pytest
import torch
from support.grids import NATIVE_FIRST
from support.plain_edsr import PlainEDSR
from support.util import channels_last, rand
from tolerance import WINOGRAD_FACTOR, assert_close

from clsd_fast import EDSR


@pytest.mark.parametrize("scale, count", [(2, 1_369_859), (3, 1_554_499), (4, 1_517_571)])
def test_trainable_parameters(scale, count):
    student = EDSR(scale)
    assert sum(p.numel() for p in student.parameters() if p.requires_grad) == count


def edsr_pytorch_shapes(scale):
    """The keys and shapes of an official EDSR-baseline file, written out."""
    weights = {"sub_mean": (3, 3, 1, 1), "add_mean": (3, 3, 1, 1), "head.0": (64, 3, 3, 3)}
    for i in range(16):
        weights |= {f"body.{i}.body.0": (64, 64, 3, 3), f"body.{i}.body.2": (64, 64, 3, 3)}
    weights |= {"body.16": (64, 64, 3, 3), "tail.1": (3, 64, 3, 3)}
    weights["tail.0.0"] = (576 if scale == 3 else 256, 64, 3, 3)
    if scale == 4:
        weights["tail.0.2"] = (256, 64, 3, 3)
    shapes = {f"{name}.weight": shape for name, shape in weights.items()}
    return shapes | {f"{name}.bias": shape[:1] for name, shape in weights.items()}


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_loads_the_state_dict_of_edsr_pytorch(scale):
    shapes, student = edsr_pytorch_shapes(scale), EDSR(scale)
    assert {k: tuple(v.shape) for k, v in student.state_dict().items()} == shapes
    file = {name: torch.randn(shape) for name, shape in shapes.items()}
    student.load_state_dict(file, strict=True)
    assert all(torch.equal(file[name], value) for name, value in student.state_dict().items())
    frozen = {name for name, p in student.named_parameters() if not p.requires_grad}
    assert frozen == {f"{m}_mean.{p}" for m in ("sub", "add") for p in ("weight", "bias")}


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_equals_plain_pytorch(backend, scale):
    torch.manual_seed(scale)
    plain = PlainEDSR(scale, 3, 16, res_scale=0.1).double()
    student = EDSR(scale, 3, 16, res_scale=0.1).double()
    student.load_state_dict(plain.state_dict())
    lr = (rand(2, 3, 7, 5) * 255).requires_grad_()
    outputs = student(lr), plain(lr)
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(y.square().mean(), lr)[0] for y in outputs]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_tail_is_composed_or_not(backend, scale):
    default, *others = (EDSR(scale, 2, 8, collapse=c).double() for c in (None, True, False))
    lr = rand(2, 3, 7, 5) * 255
    for student, collapse in zip(others, (True, False), strict=True):
        assert student.tail.collapse is collapse
        student.load_state_dict(default.state_dict(), strict=True)
        torch.testing.assert_close(student(lr), default(lr), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_float32(backend, layout):
    torch.manual_seed(0)
    plain, student = PlainEDSR(2, 4, 64), EDSR(2, 4, 64)
    student.load_state_dict(plain.state_dict())
    lr = (rand(2, 3, 9, 8) * 255).float().contiguous(memory_format=layout)
    with torch.no_grad():
        ours, theirs = student(lr), plain(lr)
        factor = WINOGRAD_FACTOR if backend == "native" else 1.0
        assert_close(ours, plain.double()(lr.double()), theirs, "image", factor)


@pytest.mark.parametrize("value_range", [1.0, 255.0])
def test_a_grey_world_of_zero_weights_is_the_mean_colour(value_range):
    student = EDSR(2, 1, 4, value_range=value_range)
    for name, parameter in student.named_parameters():
        if "mean" not in name:
            torch.nn.init.zeros_(parameter)
    expected = value_range * torch.tensor([0.4488, 0.4371, 0.4040])
    sr = student(torch.rand(1, 3, 2, 2))
    torch.testing.assert_close(sr, expected.view(1, 3, 1, 1).expand(1, 3, 4, 4))


def test_channels_last_goes_through(backend):
    student = EDSR(3, 2, 8).to(memory_format=torch.channels_last)
    sr = student(channels_last(rand(1, 3, 4, 5).float()))
    assert sr.is_contiguous(memory_format=torch.channels_last)


def hook(module, seen):
    module.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))


@pytest.mark.parametrize("name", ["head", "body", "body.3", "tail", "body.1"])
@pytest.mark.parametrize("taps", [(), (1, 3)])
def test_hooks_see_what_edsr_pytorch_s_would(backend, name, taps):
    torch.manual_seed(0)
    plain, student = PlainEDSR(2, 3, 8).double(), EDSR(2, 3, 8).double()
    student.load_state_dict(plain.state_dict())
    lr, ours, theirs = rand(1, 3, 6, 5), [], []
    hook(student.get_submodule(name), ours), hook(plain.get_submodule(name), theirs)
    shallow = student.embed(lr)
    tapped, deep = student.features(shallow, taps)
    torch.testing.assert_close(student.reconstruct(deep, like=lr), plain(lr))
    torch.testing.assert_close(ours, theirs)
    x = plain.head(plain.sub_mean(lr))
    for number, block in enumerate(plain.body[:-1], start=1):
        x = block(x)
        if number in taps:
            torch.testing.assert_close(tapped[taps.index(number)], x)


@pytest.mark.parametrize("replace", [lambda s, p: s.body.__setitem__(-1, p.body[-1]), None])
def test_plain_modules_may_take_the_place_of_ours(backend, replace):
    plain, student = PlainEDSR(2, 3, 8).double(), EDSR(2, 3, 8).double()
    student.load_state_dict(plain.state_dict())
    if replace:
        replace(student, plain)
    else:
        student.body = plain.body
        with pytest.raises(ValueError, match="EDSR: expected a body of ResidualBlocks for taps, g"):
            student.features(rand(1, 8, 4, 4), [1])
    lr = rand(1, 3, 6, 5)
    torch.testing.assert_close(student(lr), plain(lr))


def test_transforms_of_the_model(backend):
    """Ensembles, gradients of each sample, directional derivatives."""
    students = [EDSR(2, 2, 8).double() for _ in range(2)]
    parameters, buffers = torch.func.stack_module_state(students)
    lr = rand(3, 1, 3, 5, 6)

    def image(parameters, lr):
        return torch.func.functional_call(students[0], (parameters, buffers), (lr,))

    images = torch.func.vmap(image, (0, None))(parameters, lr[0])
    torch.testing.assert_close(images, torch.stack([student(lr[0]) for student in students]))

    def loss(parameters, lr):
        return image(parameters, lr).square().mean()

    student = students[0]
    own = {name: p for name, p in student.named_parameters() if p.requires_grad}
    rest = {name: p for name, p in student.named_parameters() if not p.requires_grad}
    gradient = torch.func.grad(lambda own, lr: loss(own | rest, lr))
    found = torch.func.vmap(gradient, (None, 0))(own, lr)
    for sample in range(3):
        expected = torch.autograd.grad(student(lr[sample]).square().mean(), list(own.values()))
        for name, theirs in zip(own, expected, strict=True):
            torch.testing.assert_close(found[name][sample], theirs)
    tangent = torch.func.jvp(student, (lr[0],), (lr[1],))[1]
    step = 1e-3
    difference = (student(lr[0] + step * lr[1]) - student(lr[0] - step * lr[1])) / (2 * step)
    torch.testing.assert_close(tangent, difference, rtol=1e-4, atol=1e-5)


@NATIVE_FIRST
def test_compiles_as_one_graph(backend):
    torch._dynamo.reset()
    student = EDSR(4, 2, 8)
    lr = rand(1, 3, 4, 5).float()
    compiled = torch.compile(student, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(lr), student(lr))


def operators(graph):
    targets = {node.target for node in graph.nodes if node.op == "call_function"}
    return {str(target) for target in targets if "clsd_fast" in str(target)}


def test_compiled_and_exported_models_are_fused(native):
    student, lr, graphs = EDSR(2, 2, 8).eval(), rand(1, 3, 4, 5).float(), []
    torch._dynamo.reset()

    def record(module, _):
        graphs.append(module.graph)
        return module

    torch.compile(student, fullgraph=True, backend=record)(lr)
    graphs.append(torch.export.export(student, (lr,)).graph)
    names = ("conv3x3", "residual_blocks", "upsample_tail")
    assert [operators(graph) for graph in graphs] == [
        {f"clsd_fast.{name}.default" for name in names}
    ] * 2


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: EDSR(5), "EDSR: expected scale in {2, 3, 4}, got 5"),
        (
            lambda: EDSR(2, 0),
            "EDSR: expected at least 1 block of 1 channel, got 0 blocks of 64 channels",
        ),
        (
            lambda: EDSR(2, 1, 4)(rand(3, 4, 4)),
            "EDSR: expected images of shape [B, 3, h, w], got [3, 4, 4]",
        ),
        (
            lambda: EDSR(2, 1, 4)(rand(1, 1, 4, 4)),
            "EDSR: expected images of shape [B, 3, h, w], got [1, 1, 4, 4]",
        ),
    ],
)
def test_errors(make, sentence):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == sentence
