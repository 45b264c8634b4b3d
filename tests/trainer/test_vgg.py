import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from support.trainer_util import tiny_config
from torch import nn

from clsd_fast import EDSR
from clsd_train import vgg as vgg_module
from clsd_train.build import build_model
from clsd_train.errors import UserError
from clsd_train.images import bicubic_upscale
from clsd_train.loop import Run
from clsd_train.vgg import LAYER_WEIGHTS, VGG19, PerceptualCLSD, bicubic, load_vgg

# The shapes that torchvision documents, of the layers that have weights, up to relu5_1.
TORCHVISION = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256),
               12: (256, 256), 14: (256, 256), 16: (256, 256), 19: (256, 512), 21: (512, 512),
               23: (512, 512), 25: (512, 512), 28: (512, 512)}  # fmt: skip


def narrow(monkeypatch):
    """VGG19 with an eighth of its channels: as deep, and fast."""
    layers = tuple(layer // 8 for layer in vgg_module.LAYERS)
    monkeypatch.setattr(vgg_module, "LAYERS", layers)
    torch.manual_seed(5)
    return VGG19()


def plain_features(vgg, x):
    """relu{1..5}_1 by the modules that torchvision's VGG19 is a list of."""
    x = (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    maps = []
    for index in range(29):
        if str(index) in vgg.features:
            x = F.relu(vgg.features[str(index)](x))
            maps += [x] * (index in (0, 5, 10, 19, 28))
        elif index in (4, 9, 18, 27):
            x = F.max_pool2d(x, 2)
    return maps


@pytest.fixture
def vgg_file(tmp_path, monkeypatch):
    path = tmp_path / "vgg19.safetensors"
    save_file(narrow(monkeypatch).state_dict(), path)
    return path


def test_layers_are_those_of_torchvision():
    with torch.device("meta"):
        shapes = {int(k): (c.in_channels, c.out_channels) for k, c in VGG19().features.items()}
    assert shapes == TORCHVISION


@pytest.mark.parametrize("ds_weight", [0.0, 0.5])
def test_vgg_ratio_is_its_formula(backend, monkeypatch, ds_weight):
    vgg = narrow(monkeypatch)
    student = EDSR(2, 2, 4)
    model = PerceptualCLSD(student, vgg, taps=(1, 2), head_blocks=1, ds_weight=ds_weight,
                           contrast_weight=0.2, eps=1e-3)  # fmt: skip
    lr, hr = torch.rand(2, 3, 16, 18) * 255, torch.rand(2, 3, 32, 36) * 255
    output = model(lr, hr)
    up = F.interpolate(lr, scale_factor=2, mode="bicubic", antialias=True)
    positives, negatives = plain_features(vgg, hr / 255), plain_features(vgg, up / 255)
    ratios = []
    for image in output.head_sr:
        own = plain_features(vgg, image / 255)
        ratios.append(sum(
            w * (o - p).abs().mean() / ((o - n).abs().mean() + 1e-3)
            for w, o, p, n in zip((1 / 32, 1 / 16, 1 / 8, 1 / 4, 1), own, positives, negatives,
                                  strict=True)
        ))  # fmt: skip
    expected = sum(ratios) / 2
    torch.testing.assert_close(output.losses["cl"], expected, rtol=1e-4, atol=0)
    rec = F.l1_loss(output.sr, hr) / 255
    ds = sum(F.l1_loss(image, hr) for image in output.head_sr) / 2 / 255
    torch.testing.assert_close(
        output.losses["total"], rec + ds_weight * ds + 0.2 * expected, rtol=1e-4, atol=0
    )
    assert ("ds" in output.losses) == bool(ds_weight)
    output.losses["total"].backward()
    assert all(p.grad is None for p in vgg.parameters())
    assert student.head[0].weight.grad.abs().sum() > 0
    assert not any("vgg" in key or "features" in key for key in model.state_dict())
    assert len(LAYER_WEIGHTS) == 5


def test_negatives_are_bicubic_images():
    image = torch.randint(0, 256, (9, 8, 3), dtype=torch.uint8)
    up = bicubic(image.permute(2, 0, 1)[None].float(), 3)[0].permute(1, 2, 0)
    inner = slice(9, -9)
    exact = torch.from_numpy(bicubic_upscale(image.numpy(), 3).astype("float32"))
    assert (up.round().clamp(0, 255) - exact)[inner, inner].abs().max() <= 1


def test_images_of_16_bits_have_the_same_ratio(monkeypatch):
    model = PerceptualCLSD(EDSR(2, 2, 4), narrow(monkeypatch), taps=(1,), head_blocks=1)
    lr, hr = torch.rand(1, 3, 16, 16) * 255, torch.rand(1, 3, 32, 32) * 255
    wide, narrow_ = model(lr, hr), model(lr.bfloat16(), hr.bfloat16())
    narrow_.losses["total"].backward()
    torch.testing.assert_close(narrow_.losses["cl"], wide.losses["cl"], rtol=0.02, atol=0)


@pytest.mark.parametrize("method", ["cl", "clsd"])
def test_vgg_ratio_trains(tmp_path, vgg_file, method):
    config = tiny_config(tmp_path, method=method, iterations=2)
    heads = config.heads.model_copy(update={"contrast": "vgg_ratio", "vgg": vgg_file})
    config = config.model_copy(update={"heads": heads})
    entry = Run(config).train()[0]
    assert entry.keys() & {"ds", "cl"} == ({"cl"} if method == "cl" else {"ds", "cl"})
    student = build_model(config).student
    plain = build_model(tiny_config(tmp_path, method="baseline")).student
    for ours, theirs in zip(student.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_whole_vgg19_loads(tmp_path, monkeypatch, suffix):
    """With the layers behind relu5_1 and the classifier, which torchvision's files have."""
    state = narrow(monkeypatch).state_dict()
    more = {"features.30.weight": torch.zeros(2, 2), "classifier.0.bias": torch.zeros(2)}
    path = tmp_path / f"vgg19{suffix}"
    if suffix == ".pth":
        torch.save({**state, **more}, path)
    else:
        save_file({**state, **more}, path)
    for key, value in load_vgg(path).state_dict().items():
        assert torch.equal(value, state[key])


def test_other_files_are_refused(tmp_path, monkeypatch):
    state = narrow(monkeypatch).state_dict()
    path = tmp_path / "weights.pth"
    with pytest.raises(UserError, match="no such file"):
        load_vgg(path)
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(UserError, match=r"expected VGG19's weights as torchvision names them"):
        load_vgg(path)
    del state["features.28.bias"]
    torch.save(state, path)
    with pytest.raises(UserError, match=r"weights of this VGG19 .* got features.28.bias missing"):
        load_vgg(path)
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(UserError, match="got Python objects"):
        load_vgg(path)


def test_images_too_small_for_vgg_are_refused(monkeypatch):
    model = PerceptualCLSD(EDSR(2, 2, 4), narrow(monkeypatch), taps=(1,))
    with pytest.raises(ValueError, match="vgg_ratio: expected images of at least 16 pixels a side"):
        model(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 8, 8))


def test_vgg_ratio_needs_a_file(tmp_path):
    config = tiny_config(tmp_path)
    heads = config.heads.model_copy(update={"contrast": "vgg_ratio"})
    with pytest.raises(UserError, match="heads.vgg: expected a file of VGG19's weights, got none"):
        build_model(config.model_copy(update={"heads": heads}))
