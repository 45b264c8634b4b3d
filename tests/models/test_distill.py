import pytest
import torch
from support.plain_edsr import plain_clsd_losses, plain_info_nce
from support.util import channels_last, rand
from torch.export.graph_signature import InputKind

import clsd_fast
from clsd_fast import CLSD, EDSR
from clsd_fast._projections import means_of_pixels
from clsd_fast.distill import CONTRASTS
from clsd_fast.losses import sample_positions

TAPS = (1, 2, 4)


def make(contrast="info_nce", seed=0, **options):
    torch.manual_seed(seed)
    return CLSD(EDSR(2, 4, 8), TAPS, 2, contrast, num_patches=20, **options)


def batch(dtype=torch.float32, size=6):
    generator = torch.Generator().manual_seed(1)
    lr = torch.rand(4, 3, size, size, generator=generator, dtype=torch.float64) * 255
    hr = torch.rand(4, 3, 2 * size, 2 * size, generator=generator, dtype=torch.float64) * 255
    return lr.to(dtype), hr.to(dtype)


@pytest.mark.parametrize("contrast", ["info_nce", "feature_ratio", "pos_only"])
def test_losses_and_gradients_are_those_written_out(backend, contrast):
    model = make(contrast).double()
    lr, hr = batch(torch.float64)
    ours, expected = model(lr, hr).losses, plain_clsd_losses(model, lr, hr)
    assert set(ours) == set(expected)
    trainable = [p for p in model.parameters() if p.requires_grad]
    for name, loss in ours.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-10, atol=1e-10)
    for a, b in zip(
        torch.autograd.grad(ours["total"], trainable),
        torch.autograd.grad(expected["total"], trainable),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_a_projection_whose_layers_share_a_weight(backend):
    model = make(projection_dim=8).double()
    projection = model.heads["2"].projection
    projection[2].weight = projection[0].weight
    lr, hr = batch(torch.float64)
    results = [
        (losses["cl"], *torch.autograd.grad(losses["cl"], [*projection.parameters()]))
        for losses in (model(lr, hr).losses, plain_clsd_losses(model, lr, hr))
    ]
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-10)


def test_second_derivatives_of_pooled_features():
    """A gradient that is differentiated again is computed in another way."""
    maps = [rand(2, 3, 4, 5, seed=seed).requires_grad_() for seed in range(2)]
    results = []
    for means in (means_of_pixels(maps), torch.stack([x.mean((-2, -1)) for x in maps])):
        grads = torch.autograd.grad(means.pow(3).sum(), maps, create_graph=True)
        penalty = sum(grad.square().sum() for grad in grads)
        results.append((*grads, *torch.autograd.grad(penalty, maps)))
    torch.testing.assert_close(*results)


def test_patch_nce_is_that_written_out(backend):
    model = make("patch_nce").double()
    lr, hr = batch(torch.float64)
    torch.manual_seed(5)
    loss = model(lr, hr).losses["cl"]
    torch.manual_seed(5)
    positions = sample_positions(6, 6, 20, torch.device("cpu"))
    shallow = model.student.embed(lr)
    tapped, deep = model.student.features(shallow, TAPS)
    terms = []
    for tap, x in zip(TAPS, tapped, strict=True):
        head = model.heads[str(tap)]
        for features, target in zip(head(x, shallow), deep.detach(), strict=True):
            query, key = (m.flatten(1)[:, positions].T for m in (features, target))
            projected = head.projection(query), model.heads["target_projection"](key)
            terms.append(plain_info_nce(*projected, 0.07))
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    # The heads' tails and the student's end are not on the path of this loss.
    trainable = [p for p in model.parameters() if p.requires_grad]
    ours, theirs = (
        torch.autograd.grad(value, trainable, allow_unused=True, materialize_grads=True)
        for value in (loss, expected)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("share_tail", [True, False])
def test_the_heads_tails_are_composed_as_the_students(share_tail):
    for collapse in (True, False, None):
        model = CLSD(EDSR(2, 4, 8, collapse=collapse), TAPS, 2, share_tail=share_tail)
        tails = [model.student.tail, *(model.heads[str(tap)].tail for tap in TAPS)]
        assert {tail.collapse for tail in tails} == {collapse}


def replace_conv(model):
    conv = model.heads["2"].conv
    model.heads["2"].conv = torch.nn.Conv2d(8, 8, 3, padding=1).double()
    model.heads["2"].conv.load_state_dict(conv.state_dict())


def hook_conv(model):
    """Which takes the skip connection's place behind the convolution, not before."""
    model.heads["2"].conv.register_forward_hook(lambda module, args, output: 2 * output)
    with torch.no_grad():
        for parameter in model.heads["2"].conv.parameters():
            parameter /= 2


def hook_projection(model):
    layer = model.heads["1"].projection[0]
    layer.register_forward_hook(lambda module, args, output: 2 * output)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter /= 2


def replace_projection(model):
    model.heads["4"].projection = torch.nn.Sequential(*model.heads["4"].projection, torch.nn.ReLU())
    model.heads["4"].projection[-1] = torch.nn.Identity()


@pytest.mark.parametrize("change", [replace_conv, hook_conv, hook_projection, replace_projection])
@pytest.mark.parametrize("contrast", ["info_nce", "patch_nce"])
def test_children_of_heads_may_be_touched(backend, contrast, change):
    """Each change is one that the losses do not see, as it is made up for."""
    model = make(contrast).double()
    losses = []
    for _ in range(2):
        torch.manual_seed(3)
        losses.append(model(*batch(torch.float64)).losses)
        change(model)
    torch.testing.assert_close(*losses)


def hook_block(model):
    block = model.heads["2"].blocks[0].body[2]
    block.register_forward_hook(lambda module, args, output: output)


def hook_head(model):
    model.heads["1"].register_forward_hook(lambda module, args, output: output)


def replace_blocks(model):
    model.heads["4"].blocks = torch.nn.Sequential(*model.heads["4"].blocks)


def scale_blocks(model):
    for block in model.heads["2"].blocks:
        block.res_scale = torch.tensor(1.0, dtype=torch.float64)


@pytest.mark.parametrize(
    "change, number",
    [(None, 3), (hook_block, 2), (hook_head, 2), (replace_blocks, 2), (scale_blocks, 2)],
)
def test_heads_run_together_where_they_are_as_they_were_made(native, monkeypatch, change, number):
    """Bit-equal to one by one; one that is touched runs by itself."""
    model = make().double()
    expected = model(*batch(torch.float64)).losses
    if change:
        change(model)
    calls = []

    def count(name):
        run = getattr(clsd_fast.nn, name)
        monkeypatch.setattr(
            clsd_fast.nn, name, lambda xs, *args: calls.append((name, len(xs))) or run(xs, *args)
        )

    count("residual_chains"), count("conv3x3s")
    together = model(*batch(torch.float64)).losses
    ends = 4 - (change is hook_head)
    assert calls == [("residual_chains", number), ("conv3x3s", ends)]
    torch.testing.assert_close(together, expected)
    monkeypatch.setattr(clsd_fast.nn, "kind_of_chain", lambda *args: None)
    monkeypatch.setattr(clsd_fast.nn, "kind_of_convolution", lambda *args: None)
    one_by_one = model(*batch(torch.float64)).losses
    assert len(calls) == 2
    assert all(map(torch.equal, together.values(), one_by_one.values()))


@pytest.mark.parametrize("skip, together", [("first", [4]), ("tap", []), ("none", [3])])
def test_ends_with_the_same_skip_run_together(native, monkeypatch, skip, together):
    calls, run = [], clsd_fast.nn.conv3x3s
    monkeypatch.setattr(
        clsd_fast.nn, "conv3x3s", lambda xs, *args: calls.append(len(xs)) or run(xs, *args)
    )
    model = make(skip=skip).double()
    losses = model(*batch(torch.float64)).losses
    assert calls == together
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(losses["total"], parameters)
    monkeypatch.setattr(clsd_fast.nn, "kind_of_convolution", lambda *args: None)
    expected = torch.autograd.grad(model(*batch(torch.float64)).losses["total"], parameters)
    torch.testing.assert_close(ours, expected)


def test_a_student_with_features_of_its_own(native):
    class Student(EDSR):
        def features(self, shallow, taps=()):
            tapped, deep = super().features(shallow, taps)
            return tapped, 2 * deep

    torch.manual_seed(0)
    model = CLSD(Student(2, 4, 8), TAPS, 2).double()
    plain = make().double()
    plain.load_state_dict(model.state_dict())
    lr, hr = batch(torch.float64)
    shallow = plain.student.embed(lr)
    deep = 2 * plain.student.features(shallow)[1]
    torch.testing.assert_close(model(lr, hr).sr, plain.student.reconstruct(deep, like=lr))


@pytest.mark.parametrize("contrast", ["info_nce", "feature_ratio", "pos_only"])
def test_transforms_of_the_losses(backend, contrast):
    model = make(contrast).double()
    lr, hr = batch(torch.float64)
    named = dict(model.named_parameters())

    def loss(parameters, lr):
        return torch.func.functional_call(model, parameters, (lr, hr)).losses["total"]

    direction = {name: torch.ones_like(p) * 1e-2 for name, p in named.items()}
    tangent = torch.func.jvp(lambda p: loss(p, lr), (named,), (direction,))[1]
    gradients = torch.func.grad(loss)(named, lr)
    model(lr, hr).losses["total"].backward()
    for name, parameter in named.items():
        if parameter.requires_grad:
            torch.testing.assert_close(gradients[name], parameter.grad)
    along = sum((gradients[name] * direction[name]).sum() for name in named)
    torch.testing.assert_close(tangent, along)
    each = torch.func.vmap(lambda x: loss(named, x))(torch.stack([lr, lr + 1]))
    torch.testing.assert_close(each, torch.stack([loss(named, lr), loss(named, lr + 1)]))


@pytest.mark.parametrize("option", ["ds_weight", "contrast_weight", "temperature"])
def test_a_tensor_for_a_number_gets_its_gradient(backend, option):
    number = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    model = make(**{option: number}).double()
    total = model(*batch(torch.float64)).losses["total"]
    expected = make(**{option: 0.3}).double()(*batch(torch.float64)).losses
    torch.testing.assert_close(total, expected["total"])
    (gradient,) = torch.autograd.grad(total, number)
    if option == "temperature":
        assert gradient.abs() > 1e-6
    else:
        torch.testing.assert_close(gradient, expected[{"ds_weight": "ds"}.get(option, "cl")])


def test_eps_is_that_of_the_ratio():
    small, large = (make("feature_ratio", eps=eps)(*batch()).losses["cl"] for eps in (0, 1e4))
    assert large < 1e-2 * small


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_losses_are_float32_under_autocast(contrast):
    model = make(contrast)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(*batch()).losses
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    losses["total"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_the_same_seed_twice_is_bit_equal(backend, contrast):
    results = []
    for _ in range(2):
        model = make(contrast)
        losses = model(*batch()).losses
        losses["total"].backward()
        grads = [p.grad for p in model.parameters() if p.requires_grad]
        results.append([*losses.values(), *grads])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_every_trainable_parameter_gets_a_gradient(contrast):
    model = make(contrast)
    model(*batch()).losses["total"].backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_the_target_of_the_contrast_is_detached(contrast):
    model = make(contrast)
    model(*batch()).losses["cl"].backward()
    end = model.student.body[-1]
    assert end.weight.grad is None  # only the target depends on the body's end
    assert model.student.body[0].body[0].weight.grad.abs().sum() > 0  # taps are not detached


@pytest.mark.parametrize(
    "weights, names",
    [
        ((0, 0), {"rec", "total"}),
        ((1, 0), {"rec", "ds", "total"}),
        ((0, 0.1), {"rec", "cl", "total"}),
        ((1, 0.1), {"rec", "ds", "cl", "total"}),
    ],
)
def test_methods(weights, names):
    ds_weight, contrast_weight = weights
    model = make(ds_weight=ds_weight, contrast_weight=contrast_weight)
    output = model(*batch())
    assert set(output.losses) == names
    assert len(output.head_sr) == (3 if ds_weight else 0)
    heads = {name.split(".")[1] for name in model.state_dict() if name.startswith("heads.")}
    taps = {str(tap) for tap in TAPS}
    projection = {"target_projection"} if contrast_weight else set()
    assert heads == (taps | projection if any(weights) else set())
    assert any(".tail." in n for n in model.heads.state_dict()) == bool(ds_weight)


def test_eval_is_the_student_alone(backend):
    model = make().eval()
    for head in model.heads.values():
        head.forward = None  # calling one would raise
    lr, _ = batch()
    assert torch.equal(model(lr), model.student(lr))


def test_export_of_the_student_has_no_head(backend):
    model = make().eval()
    lr, _ = batch()
    program = torch.export.export(model.student, (lr,))
    assert set(program.state_dict) == set(model.student.state_dict())
    torch.testing.assert_close(program.module()(lr), model(lr))


def test_export_of_the_whole_model_computes_with_no_head(backend):
    model = make().eval()
    lr, _ = batch()
    program = torch.export.export(model, (lr,))
    used = {node.name for node in program.graph.nodes if node.users}
    kinds = (InputKind.PARAMETER, InputKind.BUFFER)  # not constants, which the tail has
    specs = program.graph_signature.input_specs
    parameters = {s.arg.name: s.target for s in specs if s.kind in kinds}
    names = {target for name, target in parameters.items() if name in used}
    assert names == {f"student.{name}" for name in model.student.state_dict()}


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_state_dict_round_trip(contrast):
    model, other = make(contrast, seed=0), make(contrast, seed=1)
    state = model.state_dict()
    assert {name.split(".")[0] for name in state} == {"student", "heads"}
    other.load_state_dict(state, strict=True)
    results = []
    for m in (model, other):
        torch.manual_seed(2)
        results.append(m(*batch()).losses["total"])
    assert torch.equal(*results)
    student = EDSR(2, 4, 8)
    student.load_state_dict(model.student.state_dict(), strict=True)
    assert torch.equal(student(batch()[0]), model.eval()(batch()[0]))


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_projections_are_those_of_the_nce_kinds(contrast):
    names = {name for name in make(contrast).state_dict() if "projection" in name}
    assert bool(names) == (contrast in ("info_nce", "patch_nce"))
    assert all(name.startswith("heads.") for name in names)


def test_channels_last_gives_the_same(backend):
    model = make().double()
    lr, hr = batch(torch.float64)
    expected = model(lr, hr).losses["total"]
    model = model.to(memory_format=torch.channels_last)
    ours = model(channels_last(lr), channels_last(hr)).losses["total"]
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("skip", ["first", "tap", "none"])
def test_skips_differ(skip):
    losses = {name: make(skip=name)(*batch()).losses["ds"].item() for name in ("first", "tap")}
    assert len({*losses.values(), make(skip="none")(*batch()).losses["ds"].item()}) == 3


def test_the_shift_is_composed_only_as_it_was_made(backend):
    """With tails of several features; a hook, a gradient or another module has it run itself."""
    torch.manual_seed(0)
    student = EDSR(2, 1, 16).double()
    torch.nn.init.normal_(student.add_mean.weight)
    maps = [rand(2, 16, 5, 6, seed=seed).requires_grad_() for seed in range(2)]
    tails = [student.tail, student.make_tail().double()]
    parameters = [p for tail in tails for p in tail.parameters()]

    def outputs():
        images = student._reconstruct_all(maps, tails, like=maps[0])
        loss = sum(image.square().sum() for image in images)
        return [*images, *torch.autograd.grad(loss, maps + parameters, retain_graph=True)]

    expected = [
        torch.conv2d(tail(x), *student.add_mean.parameters())
        for tail, x in zip(tails, maps, strict=True)
    ]
    composed, seen = outputs(), []
    torch.testing.assert_close(composed[:2], expected)
    handle = student.add_mean.register_forward_hook(lambda *call: seen.append(call))
    torch.testing.assert_close(outputs(), composed)
    assert len(seen) == 2
    handle.remove()
    student.add_mean.requires_grad_()
    torch.testing.assert_close(outputs(), composed)
    images = student._reconstruct_all(maps, tails, like=maps[0])
    assert torch.autograd.grad(images[1].sum(), student.add_mean.bias)[0].tolist() == [240.0] * 3
    student.add_mean = torch.nn.Identity()
    torch.testing.assert_close(outputs()[0], tails[0](maps[0]))


def test_a_shared_tail_is_one_tail():
    model = make(share_tail=True)
    tails = {id(model.heads[str(tap)].tail) for tap in TAPS}
    assert len(tails) == 1
    own = sum(p.numel() for p in make().parameters())
    tail = sum(p.numel() for p in model.student.tail.parameters())
    assert own - sum(p.numel() for p in model.parameters()) == 2 * tail


def test_value_range_does_not_change_pixel_losses():
    losses = []
    for value_range in (1.0, 255.0):
        torch.manual_seed(0)
        student = EDSR(2, 4, 8, value_range=value_range)
        for name, parameter in student.named_parameters():
            if "mean" not in name:
                torch.nn.init.zeros_(parameter)
        lr, hr = (t * value_range / 255 for t in batch())
        losses.append(CLSD(student, contrast_weight=0, taps=TAPS)(lr, hr).losses["rec"])
    torch.testing.assert_close(*losses)


def test_a_batch_of_one(backend):
    lr, hr = (t[:1] for t in batch())
    assert make("info_nce")(lr, hr).losses["cl"].item() == 0
    with pytest.raises(ValueError, match="expected two rows or given negatives, got 1 row"):
        make("feature_ratio")(lr, hr)


@pytest.mark.parametrize(
    "make_model, error, sentence",
    [
        (lambda: make()(batch()[0]), ValueError, "CLSD: expected a target hr in train(), got None"),
        (
            lambda: make()(batch()[0], batch()[0]),
            ValueError,
            "CLSD: expected hr of shape [4, 3, 12, 12], got [4, 3, 6, 6]",
        ),
        (lambda: CLSD(EDSR(2), (17,)), ValueError, "CLSD: expected taps in 1..16, got 17"),
        (
            lambda: CLSD(EDSR(2), (5, 5)),
            ValueError,
            "CLSD: expected ascending, distinct taps, got [5, 5]",
        ),
        (
            lambda: CLSD(EDSR(2), (10, 5)),
            ValueError,
            "CLSD: expected ascending, distinct taps, got [10, 5]",
        ),
        (lambda: CLSD(EDSR(2), (0, 5)), ValueError, "CLSD: expected taps in 1..16, got 0"),
        (
            lambda: CLSD(EDSR(2), num_patches=0),
            ValueError,
            "CLSD: expected num_patches >= 1, got 0",
        ),
        (
            lambda: CLSD(EDSR(2), projection_dim=0),
            ValueError,
            "CLSD: expected projection_dim >= 1, got 0",
        ),
        (
            lambda: CLSD(EDSR(2), contrast_weight=float("nan")),
            ValueError,
            "CLSD: expected weights >= 0, got nan",
        ),
        (lambda: CLSD(EDSR(2), ()), ValueError, "CLSD: expected ascending, distinct taps, got []"),
        (
            lambda: CLSD(EDSR(2), contrast="moco"),
            ValueError,
            "CLSD: expected contrast in info_nce, patch_nce, feature_ratio, pos_only, got 'moco'",
        ),
        (
            lambda: CLSD(EDSR(2), skip="last"),
            ValueError,
            "CLSD: expected skip in first, tap, none, got 'last'",
        ),
        (
            lambda: CLSD(EDSR(2), head_blocks=0),
            ValueError,
            "CLSD: expected head_blocks >= 1, got 0",
        ),
        (lambda: CLSD(EDSR(2), ds_weight=-1), ValueError, "CLSD: expected weights >= 0, got -1"),
        (
            lambda: CLSD(torch.nn.Linear(1, 1)),
            TypeError,
            "CLSD: expected student to be an EDSR for taps by number, got Linear",
        ),
    ],
)
def test_errors(make_model, error, sentence):
    with pytest.raises(error) as caught:
        make_model()
    assert str(caught.value) == sentence
