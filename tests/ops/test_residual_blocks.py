import pytest
import torch
from support.calls import block_parameters
from support.grids import NATIVE_FIRST, cover
from support.util import DTYPES, LAYOUTS, compare, memory_format, rand, sliced
from torch.func import functional_call
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

import clsd_fast
from clsd_fast import residual_block, residual_blocks
from clsd_fast.nn import ResidualBlock, ResidualBlocks
from clsd_fast.ops.residual_blocks import SECTION, _sections, kind_of_chain, residual_chains

SCALE = 0.5


def lists(parameters):
    """weights1, biases1, weights2, biases2 of parameters block by block."""
    return [list(parameters[i::4]) for i in range(4)]


def chain(x, *parameters, taps=()):
    """The result and the tapped maps as one tensor, each with a weight of its own."""
    y, maps = residual_blocks(x, *lists(parameters), SCALE, taps=taps)
    return sum((number * images for number, images in enumerate(maps, start=2)), y)


def one_by_one(x, *parameters, taps=(), block=residual_block):
    maps = []
    for i in range(0, len(parameters), 4):
        x = block(x, *parameters[i : i + 4], SCALE)
        maps.append(x)
    return sum((number * maps[tap - 1] for number, tap in enumerate(taps, start=2)), x)


def plain_block(x, weight1, bias1, weight2, bias2, res_scale):
    hidden = torch.relu(torch.nn.functional.conv2d(x, weight1, bias1, padding=1))
    return x + res_scale * torch.nn.functional.conv2d(hidden, weight2, bias2, padding=1)


def plain(x, *parameters, taps=()):
    return one_by_one(x, *parameters, taps=taps, block=plain_block)


def inputs(count, channels=8, size=(5, 7), hidden=None, batch=2):
    parameters = block_parameters(count, channels, hidden or channels)
    return [rand(batch, channels, *size), *parameters]


@cover(dtype=DTYPES[:2], layout=LAYOUTS, channels=[3, 16], taps=[(), (1,), (1, 2, 3)])
def test_channels_layouts_dtypes(backend, dtype, layout, channels, taps):
    """Of 16 bits, chains have hidden numbers whose sign is that of a rounding error, and gradients
    with it."""
    compare(
        lambda *t: chain(*t, taps=taps),
        lambda *t: plain(*t, taps=taps),
        inputs(3, channels),
        dtype,
        layout,
    )


@cover(
    quick=6,
    dtype=[(dtype, dtype) for dtype in DTYPES] + [(dtype, torch.float32) for dtype in DTYPES[2:]],
    layout=LAYOUTS,
    count=[2, SECTION, SECTION + 1, 2 * SECTION],
    taps=[(), (1,), (2, 1), (SECTION - 1, SECTION), (5, 2 * SECTION)],
)
def test_a_chain_is_its_blocks(backend, dtype, layout, count, taps):
    """Bit-equal, gradients too, whatever is tapped and wherever sections end; of images of the
    first dtype and parameters of the second."""
    taps = tuple(min(tap, count) for tap in taps)
    tensors = [
        layout(t.to(dtype[index > 0])).requires_grad_() for index, t in enumerate(inputs(count))
    ]
    outputs = [function(*tensors, taps=taps) for function in (chain, one_by_one)]
    assert torch.equal(*outputs)
    grads = [torch.autograd.grad(output.square().sum(), tensors) for output in outputs]
    assert all(map(torch.equal, *grads))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("taps", [(), (2, 3), (SECTION, SECTION + 2)])
def test_nothing_is_kept_without_gradients(backend, layout, taps):
    """The same result by two buffers, of which a tapped map is none."""
    x, *parameters = (layout(t.float()) for t in inputs(SECTION + 2))
    expected, expected_maps = residual_blocks(
        x.clone().requires_grad_(), *lists(parameters), taps=taps
    )
    before = x.clone()
    y, maps = residual_blocks(x, *lists(parameters), taps=taps)
    assert torch.equal(y, expected) and all(map(torch.equal, maps, expected_maps))
    assert torch.equal(x, before)
    own = {images.data_ptr() for images in (x, y, *maps)}
    assert len(own) == 2 + len([tap for tap in taps if tap < SECTION + 2])


def test_the_last_tap_is_the_result(backend):
    x, *parameters = inputs(3)
    y, (first, last) = residual_blocks(x, *lists(parameters), taps=(1, 3))
    assert last is y and not torch.equal(first, y)


def test_blocks_without_biases(backend):
    x, *parameters = inputs(2)
    weights1, _, weights2, biases2 = lists(parameters)
    for wanted in (weights1, weights2, biases2):
        for tensor in wanted:
            tensor.requires_grad_()
    y, _ = residual_blocks(x, weights1, [], weights2, biases2, SCALE)
    expected = x
    for weight1, weight2, bias2 in zip(weights1, weights2, biases2, strict=True):
        expected = plain_block(expected, weight1, None, weight2, bias2, SCALE)
    leaves = [*weights1, *weights2, *biases2]
    grads = [torch.autograd.grad(output.sum(), leaves) for output in (y, expected)]
    torch.testing.assert_close([y, *grads[0]], [expected, *grads[1]])


@pytest.mark.parametrize("wanted", [[0], [1], [2, 7], [12]])
def test_some_tensors_alone_need_a_gradient(backend, wanted):
    tensors = inputs(3)
    for index in wanted:
        tensors[index].requires_grad_()
    leaves = [tensors[index] for index in wanted]
    pairs = [torch.autograd.grad(f(*tensors).sum(), leaves) for f in (chain, plain)]
    torch.testing.assert_close(*pairs)


def test_a_tap_alone_has_a_gradient(backend):
    """Blocks behind it have none, as where nothing depends on them."""
    tensors = [t.requires_grad_() for t in inputs(3)]
    grads = []
    for function in (residual_blocks, None):
        if function:
            _, (tapped,) = function(tensors[0], *lists(tensors[1:]), SCALE, taps=(2,))
        else:
            tapped = plain(*tensors[:9])
        grads.append(torch.autograd.grad(tapped.sum(), tensors, allow_unused=True))
    assert all(grad is None for grads_of in grads for grad in grads_of[9:])
    torch.testing.assert_close(grads[0][:9], grads[1][:9])


@pytest.mark.parametrize("count, taps", [(3, (3,)), (SECTION + 1, (SECTION,)), (3, (1, 2))])
def test_gradcheck(backend, count, taps):
    tensors = [t.requires_grad_() for t in inputs(count, 2, (2, 3), hidden=1, batch=1)]
    assert torch.autograd.gradcheck(lambda *t: chain(*t, taps=taps), tensors, fast_mode=True)


def test_expanded_and_sliced_gradients_of_taps(backend):
    tensors = [t.requires_grad_() for t in inputs(3)]
    pairs = []
    for function in (residual_blocks, None):
        if function:
            y, (tapped,) = residual_blocks(tensors[0], *lists(tensors[1:]), SCALE, taps=(2,))
        else:
            y, tapped = plain(*tensors), plain(*tensors[:9])
        for grad in (torch.ones(()).double().expand_as(y), sliced(rand(*y.shape))):
            pairs.append(torch.autograd.grad((y, tapped), tensors, (y, grad), retain_graph=True))
    for ours, theirs in zip(pairs[:2], pairs[2:], strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_maps_keep_the_memory_format(backend, layout):
    x, *parameters = inputs(3)
    expected = "contiguous" if layout is sliced else layout.__name__
    for grad in (False, True):
        y, maps = residual_blocks(layout(x).requires_grad_(grad), *lists(parameters), taps=(1, 2))
        assert {memory_format(images) for images in (y, *maps)} == {expected}


def test_empty_batch(backend):
    compare(
        lambda *t: chain(*t, taps=(1,)),
        lambda *t: plain(*t, taps=(1,)),
        inputs(2, batch=0),
        torch.float32,
    )


def test_sections_end_beside_taps():
    """A gradient that comes in at a section's last map is added by PyTorch, over the whole map."""
    assert list(_sections([16])) == [(0, 8), (8, 16)]
    assert list(_sections([5, 10, 15, 16])) == [(0, 8), (8, 16)]
    assert list(_sections([8, 16])) == [(0, 7), (7, 15), (15, 16)]
    assert list(_sections(range(1, 10))) == [(0, 1), (1, 9)]
    assert list(_sections([5], 2)) == [(0, 2), (2, 4), (4, 5)]


@cover(quick=1, layout=LAYOUTS)
def test_opcheck(layout):
    x, *parameters = (layout(t.float()).detach().requires_grad_() for t in inputs(2, 5, (3, 4), 4))
    op = torch.ops.clsd_fast.residual_blocks
    opcheck(op, ([x], *lists(parameters), SCALE, [1, 2], True))
    x, *parameters = (t.detach() for t in (x, *parameters))
    weights1, _, weights2, _ = lists(parameters)
    opcheck(op, ([x], weights1, [], weights2, [], SCALE, [2], False))
    maps, hiddens = op([x], *lists(parameters), SCALE, [1, 2], True)
    grad = layout(rand(2, 5, 3, 4).float())
    saved = ([x], maps[:1], hiddens, weights1, weights2, SCALE)
    for needs in ((True, True), (True, False), (False, True)):
        for grads, at in (([grad], [2]), ([grad, grad.clone()], [1, 2])):
            opcheck(torch.ops.clsd_fast.residual_blocks_backward, (grads, at, *saved, *needs))


def test_gradient_without_all_maps_raises():
    x, *parameters = (t.requires_grad_() for t in inputs(2))
    (y,), _ = torch.ops.clsd_fast.residual_blocks([x], *lists(parameters), 1.0, [2], True)
    with pytest.raises(RuntimeError, match="expected save_hidden=True and all maps kept"):
        y.sum().backward()


def several(chains, count, layout=lambda x: x, dtype=torch.float64):
    """Leaves: the images and the parameters, block by block, of each chain."""
    leaves = []
    for chain in range(chains):
        x, *parameters = inputs(count)
        leaves.append([layout(((1 + chain / 4) * t).to(dtype)) for t in (x, *parameters)])
    return [[t.requires_grad_() for t in tensors] for tensors in leaves]


def together(leaves):
    xs, chains = [x for x, *_ in leaves], [lists(parameters) for _, *parameters in leaves]
    return residual_chains(xs, chains, SCALE)


@cover(dtype=DTYPES, layout=LAYOUTS, chains=[1, 2, 3], count=[1, 3, 5])
def test_several_chains_are_each_of_them(native, dtype, layout, chains, count):
    """Bit-equal, gradients too."""
    leaves = several(chains, count, layout, dtype)
    flat = [t for tensors in leaves for t in tensors]
    results = [together(leaves), [chain(*tensors) for tensors in leaves]]
    assert all(map(torch.equal, *results))
    totals = (sum(w * y.square().mean() for w, y in enumerate(ys, start=1)) for ys in results)
    grads = [torch.autograd.grad(total, flat) for total in totals]
    assert all(map(torch.equal, *grads)) and all(grad.isfinite().all() for grad in grads[0])


@pytest.mark.parametrize("used", [[1], [0, 2]])
@pytest.mark.parametrize("wanted", [None, 0, 1])
def test_some_of_several_chains_have_gradients(native, used, wanted):
    """Others have none, as where nothing depends on them; of all tensors, or of one of each."""
    leaves = several(3, 2)
    if wanted is not None:
        for tensors in leaves:
            for index, tensor in enumerate(tensors):
                tensor.requires_grad_(index == wanted)
    flat = [t for tensors in leaves for t in tensors if t.requires_grad]
    pairs = []
    for ys in (together(leaves), [chain(*tensors) for tensors in leaves]):
        total = sum(ys[i].sum() for i in used)
        pairs.append(torch.autograd.grad(total, flat, allow_unused=True))
    for ours, theirs in zip(*pairs, strict=True):
        assert (ours is None) == (theirs is None) and (ours is None or torch.equal(ours, theirs))


def test_several_chains_whose_maps_have_gradients_at_different_blocks(native):
    """As callers of the operator may have them."""
    leaves = several(2, 2)
    xs, parameters = [x for x, *_ in leaves], [lists(t[1:]) for t in leaves]
    by_block = [
        [t for pair in zip(*pairs, strict=True) for t in pair]
        for pairs in zip(*parameters, strict=True)
    ]
    maps, _ = torch.ops.clsd_fast.residual_blocks(xs, *by_block, SCALE, [1, 2], True)
    flat = [t for tensors in leaves for t in tensors]
    ours = torch.autograd.grad(maps[0].sum() + maps[3].sum(), flat, allow_unused=True)
    first, second = chain(*leaves[0][:5]), chain(*leaves[1])
    theirs = torch.autograd.grad(first.sum() + second.sum(), flat, allow_unused=True)
    torch.testing.assert_close(ours, theirs)


def test_several_chains_compiled_as_one_graph(native):
    leaves = several(3, 2)

    def gradients_by(function):
        total = sum(y.square().sum() for y in function(leaves))
        return torch.autograd.grad(total, [t for tensors in leaves for t in tensors])

    compiled = torch.compile(together, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradients_by(compiled), gradients_by(together))


def test_chains_of_one_kind(native):
    """Have one shape, dtypes and biases; without a native kernel, none is of any."""
    (x, *parameters), (other, *others) = several(2, 2)
    kind = kind_of_chain(x, lists(parameters))
    assert kind is not None and kind == kind_of_chain(other, lists(others))
    weights1, biases1, weights2, biases2 = lists(parameters)
    narrow = [[w[:4] for w in weights1], [b[:4] for b in biases1], [w[:, :4] for w in weights2]]
    for different in (
        kind_of_chain(x[:1], lists(parameters)),
        kind_of_chain(x.float(), [[t.float() for t in tensors] for tensors in lists(parameters)]),
        kind_of_chain(x, [weights1, [], weights2, biases2]),
        kind_of_chain(x, [weights1[:1], biases1[:1], weights2[:1], biases2[:1]]),
        kind_of_chain(x, [*narrow, biases2]),
    ):
        assert different not in (None, kind)
    with clsd_fast.use_backend("reference"):
        assert kind_of_chain(x, lists(parameters)) is None
    kinds = []
    torch.func.vmap(lambda x: kinds.append(kind_of_chain(x, lists(parameters))) or x)(x[None])
    assert kinds == [None]


def model(count=SECTION + 2):
    torch.manual_seed(0)
    return ResidualBlocks(*(ResidualBlock(4) for _ in range(count))).double()


def gradients(blocks, run):
    output = run(rand(2, 4, 5, 6))
    return [output, *torch.autograd.grad(output.square().sum(), blocks.parameters())]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed(backend, reentrant):
    blocks = model()
    expected = gradients(blocks, blocks)

    def run(x):
        return checkpoint(blocks, x.requires_grad_(), use_reentrant=reentrant)

    output = run(rand(2, 4, 5, 6))
    output.square().sum().backward()  # reentrant checkpoints refuse autograd.grad
    torch.testing.assert_close([output, *(p.grad for p in blocks.parameters())], expected)


def test_functional_call(backend):
    blocks = model()
    expected = gradients(blocks, blocks)
    parameters = {
        name: p.detach().clone().requires_grad_() for name, p in blocks.named_parameters()
    }
    output = functional_call(blocks, parameters, (rand(2, 4, 5, 6),))
    grads = torch.autograd.grad(output.square().sum(), parameters.values())
    torch.testing.assert_close([output, *grads], expected)


@NATIVE_FIRST
def test_compiled_as_one_graph(backend):
    blocks = model()
    compiled = torch.compile(blocks, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradients(blocks, compiled), gradients(blocks, blocks))


def test_a_section_frees_what_it_saved_when_it_ends(native):
    """And its parameters' gradients come then, not with those of the first block."""
    blocks, order = model(2 * SECTION), []
    for number, block in enumerate(blocks):
        block.body[0].weight.register_post_accumulate_grad_hook(
            lambda _, number=number: order.append(number)
        )
    output = blocks(rand(1, 4, 5, 6))
    nodes = [output.grad_fn, output.grad_fn.next_functions[0][0]]
    assert [type(node).__name__ for node in nodes] == [type(nodes[0]).__name__] * 2
    output.sum().backward()
    assert set(order[:SECTION]) == set(range(SECTION, 2 * SECTION)) and set(order[SECTION:]) == set(
        range(SECTION)
    )


def test_autocast(backend):
    x, *parameters = (t.float() for t in inputs(2))
    with torch.autocast("cpu", torch.bfloat16):
        y, (tapped,) = residual_blocks(x, *lists(parameters), taps=(1,))
    expected, _ = residual_blocks(x.bfloat16(), *lists(parameters))
    assert torch.equal(y, expected) and tapped.dtype == torch.bfloat16


def test_chain_of_the_student(native, monkeypatch):
    """Its blocks are a chain, and the heads' are several together; nothing calls them alone."""
    calls = []
    run = clsd_fast.nn.residual_blocks

    def counted(x, weights1, *args, **options):
        calls.append(len(weights1))
        return run(x, weights1, *args, **options)

    def together(xs, chains, *args):
        calls.append([len(weights1) for weights1, *_ in chains])
        return residual_chains(xs, chains, *args)

    monkeypatch.setattr(clsd_fast.nn, "residual_blocks", counted)
    monkeypatch.setattr(clsd_fast.nn, "residual_chains", together)
    monkeypatch.setattr(clsd_fast.nn, "residual_block", None)
    student = clsd_fast.EDSR(2, num_blocks=4, channels=8)
    clsd_fast.CLSD(student, taps=(1, 3), head_blocks=2)(
        rand(2, 3, 6, 6).float(), rand(2, 3, 12, 12).float()
    )
    assert calls == [4, [2, 2]]
