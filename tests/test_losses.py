import pytest
import torch
from plain_edsr import plain_info_nce
from util import channels_last, rand

from clsd_fast.losses import feature_ratio, patch_nce, pos_only, sample_positions

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


@pytest.mark.parametrize("loss", [feature_ratio, pos_only])
def test_layout_does_not_matter(backend, loss):
    torch.testing.assert_close(
        loss(channels_last(HEADS[0]), channels_last(TARGET)), loss(HEADS[0], TARGET)
    )


def test_pos_only():
    torch.testing.assert_close(pos_only(HEADS, TARGET), (HEADS - TARGET).abs().mean())


def test_positions_are_distinct_and_follow_the_seed():
    torch.manual_seed(0)
    first = sample_positions(9, 8, 20, torch.device("cpu"))
    torch.manual_seed(0)
    assert torch.equal(first, sample_positions(9, 8, 20, torch.device("cpu")))
    assert len(set(first.tolist())) == 20 and max(first) < 72
    assert sorted(sample_positions(3, 2, 20, torch.device("cpu")).tolist()) == list(range(6))


@pytest.mark.parametrize("loss", [feature_ratio, pos_only])
def test_maps_must_agree(loss):
    message = f"{loss.__name__}: expected features and target of shape .* that agree"
    with pytest.raises(ValueError, match=message):
        loss(HEADS, rand(4, 6, 5, 6))
