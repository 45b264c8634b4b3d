import pickle

import pytest
import torch
from support.plain_edsr import plain_info_nce
from support.util import channels_last, rand

from clsd_fast import distance_ratio_loss, info_nce
from clsd_fast.losses import _rows, feature_ratio, patch_nce, pos_only, sample_positions
from clsd_fast.nn import DistanceRatioLoss, FeatureRatioLoss, InfoNCELoss, PatchNCELoss

HEADS, TARGET = rand(3, 4, 6, 5, 7), rand(4, 6, 5, 7, seed=1)


@pytest.mark.parametrize("positions", [torch.tensor([0, 3, 34, 12]), torch.arange(35)])
def test_patch_nce(backend, positions):
    features = HEADS.clone().requires_grad_()
    loss = patch_nce(features, TARGET, positions, temperature=0.2)
    terms = []
    for head in features:
        for image, target in zip(head, TARGET, strict=True):
            query, key = (maps.flatten(1)[:, positions].T for maps in (image, target))
            terms.append(plain_info_nce(query, key, 0.2))
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(loss, expected)
    grads = [torch.autograd.grad(value, features)[0] for value in (loss, expected)]
    torch.testing.assert_close(*grads)


def test_feature_ratio(backend):
    features = HEADS.clone().requires_grad_()
    loss = feature_ratio(features, TARGET, eps=0.01)
    table = (features.unsqueeze(2) - TARGET.unsqueeze(0)).abs().mean((-3, -2, -1))
    own = table.diagonal(dim1=-2, dim2=-1)
    expected = (own / ((table.sum(-1) - own) / 3 + 0.01)).mean()
    torch.testing.assert_close(loss, expected)
    grads = [torch.autograd.grad(value, features)[0] for value in (loss, expected)]
    torch.testing.assert_close(*grads)


def test_patch_nce_draws_its_positions():
    torch.manual_seed(4)
    drawn = patch_nce(HEADS, TARGET, num_patches=9)
    torch.manual_seed(4)
    positions = sample_positions(5, 7, 9, torch.device("cpu"))
    assert torch.equal(drawn, patch_nce(HEADS, TARGET, positions))
    with pytest.raises(ValueError, match="patch_nce: expected at least 1 position, got 0"):
        patch_nce(HEADS, TARGET, num_patches=0)


def all_patches(features, target):
    return patch_nce(features, target, torch.arange(35))


@pytest.mark.parametrize("loss", [all_patches, feature_ratio, pos_only])
def test_layout_does_not_matter(backend, loss):
    torch.testing.assert_close(
        loss(channels_last(HEADS[0]), channels_last(TARGET)), loss(HEADS[0], TARGET)
    )


@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, channels_last])
def test_maps_are_viewed_not_copied(layout):
    maps = layout(TARGET)
    heads = torch.stack([maps, maps])
    for ours, given in zip(_rows(heads, maps), (heads, maps), strict=True):
        assert ours.data_ptr() == given.data_ptr()


def test_mixed_layouts(backend):
    expected = feature_ratio(HEADS[0], TARGET)
    torch.testing.assert_close(feature_ratio(channels_last(HEADS[0]), TARGET), expected)
    torch.testing.assert_close(feature_ratio(HEADS[0], channels_last(TARGET)), expected)


def test_pos_only():
    torch.testing.assert_close(pos_only(HEADS, TARGET), (HEADS - TARGET).abs().mean())


def test_positions_are_distinct_and_follow_the_seed():
    torch.manual_seed(0)
    first = sample_positions(9, 8, 20, torch.device("cpu"))
    torch.manual_seed(0)
    assert torch.equal(first, sample_positions(9, 8, 20, torch.device("cpu")))
    assert len(set(first.tolist())) == 20 and max(first) < 72
    assert sorted(sample_positions(3, 2, 20, torch.device("cpu")).tolist()) == list(range(6))


@pytest.mark.parametrize("loss", [patch_nce, feature_ratio, pos_only])
def test_maps_must_agree(loss):
    message = f"{loss.__name__}: expected features and target of shape .* that agree"
    with pytest.raises(ValueError, match=message):
        loss(HEADS, rand(4, 6, 5, 6))


def test_info_nce_loss(backend):
    query, key, negatives = rand(3, 5, 6), rand(5, 6, seed=1), rand(4, 6, seed=2)
    loss = InfoNCELoss(temperature=0.2)
    torch.testing.assert_close(loss(query, key), plain_info_nce(query, key, 0.2))
    assert InfoNCELoss(reduction="none")(query, key).shape == (3, 5)
    unit = torch.nn.functional.normalize
    own = (unit(query, dim=-1) * unit(key, dim=-1)).sum(-1, keepdim=True)
    others = unit(query, dim=-1) @ unit(negatives, dim=-1).mT
    logits = torch.cat([own, others], dim=-1) / 0.2
    expected = (logits.logsumexp(-1) - logits[..., 0]).mean()
    torch.testing.assert_close(loss(query, key, negatives), expected)


def test_info_nce_loss_passes_its_options_on(backend):
    query, key = rand(3, 5, 6), rand(3, 5, 6, seed=1)
    options = {"mask": rand(5, 5, seed=2) > 0, "labels": torch.tensor([0, 0, 1, 2, 1])}
    expected = info_nce(query, key, temperature=0.2, reduction="none", **options)
    torch.testing.assert_close(InfoNCELoss(0.2, "none")(query, key, **options), expected)


def test_info_nce_loss_learns_its_temperature(backend):
    loss = InfoNCELoss(0.5, learn_temperature=True)
    assert {name: p.shape for name, p in loss.named_parameters()} == {"temperature": ()}
    assert not list(InfoNCELoss(0.5).parameters())
    query, key = rand(5, 6).float(), rand(5, 6, seed=1).float()
    value = loss(query, key)
    torch.testing.assert_close(value, info_nce(query, key, temperature=0.5))
    value.backward()
    above, below = (info_nce(query, key, temperature=t) for t in (0.501, 0.499))
    torch.testing.assert_close(loss.temperature.grad, (above - below) / 0.002, rtol=1e-2, atol=0)


def test_distance_ratio_loss(backend):
    anchor, positive, negatives = rand(3, 5, 6), rand(5, 6, seed=1), rand(4, 6, seed=2)
    own = (anchor - positive).abs().mean(-1)
    others = (anchor.unsqueeze(-2) - negatives).abs().mean((-2, -1))
    rows = DistanceRatioLoss(eps=0.5, reduction="none")(anchor, positive, negatives)
    torch.testing.assert_close(rows, own / (others + 0.5))
    loss = DistanceRatioLoss(eps=0.5, reduction="sum")
    torch.testing.assert_close(loss(anchor, positive, negatives), rows.sum())
    table = (anchor.unsqueeze(-2) - positive).abs().mean(-1)
    expected = own / ((table.sum(-1) - own) / 4 + 1e-7)
    torch.testing.assert_close(DistanceRatioLoss()(anchor, positive), expected.mean())


ROWS, MAPS = (rand(5, 6), rand(5, 6, seed=1)), (HEADS, TARGET)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    "module, inputs, function, options",
    [
        (InfoNCELoss, ROWS, info_nce, {"temperature": 0.2}),
        (DistanceRatioLoss, ROWS, distance_ratio_loss, {"eps": 0.5}),
        (PatchNCELoss, MAPS, patch_nce, {"num_patches": 9, "temperature": 0.2}),
        (FeatureRatioLoss, MAPS, feature_ratio, {"eps": 0.5}),
    ],
)
def test_modules_are_weighted_functions(module, inputs, function, options, reduction):
    """And show their options in print, in pickles and as BasicSR names them."""
    loss = pickle.loads(pickle.dumps(module(**options, reduction=reduction, loss_weight=0.25)))
    torch.manual_seed(0)
    expected = 0.25 * function(*inputs, **options, reduction=reduction)
    torch.manual_seed(0)
    torch.testing.assert_close(loss(*inputs), expected)
    shown = {**options, "reduction": reduction, "loss_weight": 0.25}
    assert repr(loss) == f"{module.__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"


@pytest.mark.parametrize("function, shape", [(patch_nce, (3, 4, 9)), (feature_ratio, (3, 4))])
def test_unreduced(backend, function, shape):
    options = {"positions": torch.arange(9)} if function is patch_nce else {}
    losses = function(HEADS, TARGET, reduction="none", **options)
    assert losses.shape == shape
    torch.testing.assert_close(losses.mean(), function(HEADS, TARGET, **options))
    for head, of_head in zip(HEADS, losses, strict=True):
        torch.testing.assert_close(function(head, TARGET, **options), of_head.mean())


def test_a_learned_temperature_and_weight_are_shown():
    loss = InfoNCELoss(0.5, learn_temperature=True, loss_weight=torch.nn.Parameter(torch.ones(())))
    assert repr(loss) == (
        "InfoNCELoss(temperature=tensor(0.5000), reduction='mean', loss_weight=tensor(1.))"
    )
    loss(*(rows.float() for rows in ROWS)).backward()
    assert all(p.grad is not None for p in loss.parameters()) and len(list(loss.parameters())) == 2


@pytest.mark.parametrize("position, name", list(enumerate(["query", "positive_key"])))
def test_info_nce_loss_refuses_maps(position, name):
    inputs = [*ROWS]
    inputs[position] = TARGET
    message = rf"InfoNCELoss: expected {name} of shape .*, got \[4, 6, 5, 7\] \(PatchNCELoss takes"
    with pytest.raises(ValueError, match=message):
        InfoNCELoss()(*inputs)


@pytest.mark.parametrize("position, name", list(enumerate(["anchor", "positive"])))
def test_distance_ratio_loss_refuses_maps(position, name):
    inputs = [*ROWS]
    inputs[position] = TARGET
    message = rf"DistanceRatioLoss: expected {name} of shape .*\(FeatureRatioLoss takes maps"
    with pytest.raises(ValueError, match=message):
        DistanceRatioLoss()(*inputs)
