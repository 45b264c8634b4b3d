import pytest
import torch
from support.plain_edsr import plain_info_nce
from support.util import channels_last, rand

from clsd_fast.losses import _rows, feature_ratio, patch_nce, pos_only, sample_positions

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
