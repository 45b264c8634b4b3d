import pytest
import torch
import torch.nn.functional as F
from support.trainer_util import refused, tiny_config

from clsd_fast import EDSR, CLSDOutput
from clsd_train import loop
from clsd_train.build import build_model
from clsd_train.checkpoint import load_student, save_student
from clsd_train.config import load_config
from clsd_train.errors import UserError
from clsd_train.loop import Run
from clsd_train.rivals import FAKD, LFD, selective_error, spatial_similarity

DEPTHS = (0.5, 1.0)


@pytest.fixture
def teacher_file(tmp_path):
    torch.manual_seed(9)
    path = tmp_path / "teacher.safetensors"
    save_student(EDSR(2, 4, 12, res_scale=0.1, value_range=1.0), path)
    return path


def rival_config(tmp_path, teacher, method, **train):
    config = tiny_config(tmp_path, method, method, **train)
    options = config.teacher.model_copy(update={"checkpoint": teacher, "depths": DEPTHS})
    return config.model_copy(update={"teacher": options})


def images(batch=2, height=6, width=5, dtype=torch.float32):
    torch.manual_seed(3)
    lr = torch.rand(batch, 3, height, width, dtype=dtype) * 255
    return lr, torch.rand(batch, 3, 2 * height, 2 * width, dtype=dtype) * 255


def pair(value_range=1.0, dtype=torch.float64):
    torch.manual_seed(1)
    student, teacher = EDSR(2, 2, 4), EDSR(2, 4, 6, 0.1, value_range)
    return student.to(dtype), teacher.to(dtype)


def features(model, lr, taps):
    """The maps after some blocks and the image, module by module."""
    x = model.head(model.sub_mean(lr))
    deep, maps = x, []
    for number, layer in enumerate(model.body, 1):
        deep = layer(deep)
        maps += [deep] * (number in taps)
    return maps, model.add_mean(model.tail(deep + x))


def cosine_table(features):
    vectors = F.normalize(features.flatten(2), dim=1)
    return vectors.transpose(1, 2) @ vectors


@pytest.mark.parametrize("value_range", [1.0, 255.0])
def test_fakd_is_its_formula(backend, value_range):
    student, teacher = pair(value_range)
    lr, hr = images(dtype=torch.float64)
    model = FAKD(student, teacher, DEPTHS, affinity_weight=10)
    losses = model(lr, hr).losses
    ours, sr = features(student, lr, (1, 2))
    theirs, image = features(teacher, lr * value_range / 255, (2, 4))
    affinity = sum(
        F.l1_loss(cosine_table(a), cosine_table(b)) for a, b in zip(ours, theirs, strict=True)
    )
    errors = F.l1_loss(sr, hr), F.l1_loss(sr, image * 255 / value_range)
    expected = (0.5 * errors[0] + 0.5 * errors[1] + 10 * affinity) / 255
    torch.testing.assert_close(losses["total"], expected)
    torch.testing.assert_close(losses["affinity"], affinity)
    torch.testing.assert_close(losses["rec"], errors[0] / 255)


def test_lfd_is_its_formula(backend):
    student, teacher = pair()
    lr, hr = images(dtype=torch.float64)
    model = LFD(student, teacher, DEPTHS, feature_weight=3).double()
    losses = model(lr, hr).losses
    ours, sr = features(student, lr, (1, 2))
    theirs, _ = features(teacher, lr / 255, (2, 4))
    expected = 0
    for tap, features_, target in zip(("1", "2"), ours, theirs, strict=True):
        differences = (model.heads[tap](features_) - target * 255).abs()
        of_image = []
        for one in differences:
            mean = one.mean(0).flatten().detach()
            attention = torch.softmax(mean / mean.mean(), 0) * mean.numel()
            of_image.append((one.flatten(1) * attention).mean())
        expected += sum(of_image) / len(of_image) / 2 / 255
    # The attention is of float32 whatever the features are.
    torch.testing.assert_close(losses["feature"], expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(losses["total"], F.l1_loss(sr, hr) / 255 + 3 * losses["feature"])


def test_similarity_is_of_positions_and_equal_maps_have_no_error():
    x = torch.rand(2, 3, 4, 5)
    table = spatial_similarity(x)
    assert table.shape == (2, 20, 20)
    torch.testing.assert_close(table, cosine_table(x))
    assert selective_error(x, x) == 0


@pytest.mark.parametrize("kind", [FAKD, LFD])
def test_the_teacher_is_outside(kind):
    student, teacher = pair(dtype=torch.float32)
    model = kind(student, teacher, DEPTHS)
    shared = {id(p) for p in model.parameters()} & {id(p) for p in teacher.parameters()}
    assert not shared and not any("teacher" in key for key in model.state_dict())
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    output = model.train()(*images())
    assert isinstance(output, CLSDOutput)
    output.losses["total"].backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    assert not teacher.training
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name])
    lr, _ = images()
    assert torch.equal(model.eval()(lr), student(lr))


@pytest.mark.parametrize("kind", [FAKD, LFD])
def test_the_teacher_follows_the_module(kind):
    model = kind(*pair(dtype=torch.float32), DEPTHS).to(memory_format=torch.channels_last).double()
    weight = model.teacher.head[0].weight
    assert weight.dtype == torch.float64
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", [FAKD, LFD])
def test_images_of_16_bits_take_parameters_of_32(kind):
    lr, hr = (x.bfloat16() for x in images())
    losses = kind(*pair(dtype=torch.float32), DEPTHS)(lr, hr).losses
    losses["total"].backward()
    assert losses["total"].isfinite()


def test_depths_are_those_of_the_public_code():
    teacher = EDSR(2, 32, 2)
    model = FAKD(EDSR(2, 16, 2), teacher)
    assert model.taps == (5, 10, 16)
    assert model._teacher_taps == (10, 21, 32)


@pytest.mark.parametrize("method", ["fakd", "lfd"])
def test_a_rival_trains_and_ships_a_plain_student(tmp_path, teacher_file, method):
    config = rival_config(tmp_path, teacher_file, method)
    run = Run(config)
    plain = build_model(tiny_config(tmp_path, method="baseline")).student
    for (name, ours), theirs in zip(run.model.student.named_parameters(), plain.parameters(),
                                    strict=True):  # fmt: skip
        assert torch.equal(ours, theirs), name
    entries = run.train()
    own = {"fakd": {"teacher", "affinity"}, "lfd": {"feature"}}[method]
    assert entries[0].keys() >= {"rec", "total"} | own
    shipped = load_student(config.output / loop.STUDENT)
    assert shipped.state_dict().keys() == plain.state_dict().keys()
    saved = torch.load(config.output / loop.STATE, weights_only=True)
    assert not any("teacher" in key for key in saved["model"])
    again = Run(config.model_copy(update={"train": config.train.model_copy(
        update={"iterations": 7})}), resume=True)  # fmt: skip
    assert again.iteration == 6
    assert again.train()[-1]["iteration"] == 7


def test_what_teachers_are_refused(tmp_path, teacher_file):
    options = ["method=fakd", "model.num_blocks=2", "model.channels=8"]
    with pytest.raises(UserError, match=r"teacher.checkpoint: expected the weights of an EDSR"):
        build_model(load_config(None, options))
    options.append(f"teacher.checkpoint={teacher_file}")
    with pytest.raises(UserError, match=r"apart, got blocks 1, 1, 2"):
        build_model(load_config(None, options))
    with pytest.raises(UserError, match="FAKD: expected a teacher of scale 3, got 2"):
        build_model(load_config(None, [*options, "scale=3"]))
    with pytest.raises(UserError, match="nowhere: no such file"):
        build_model(load_config(None, [*options, "teacher.checkpoint=nowhere"]))


def test_a_refused_teacher_is_one_line_and_no_folder(tmp_path, capsys):
    hr = tiny_config(tmp_path).data.train[0]
    arguments = ("train", "method=lfd", f"data.train={hr}", f"output={tmp_path / 'run'}")
    line = refused(capsys, tmp_path, *arguments)
    assert "expected the weights of an EDSR for lfd, got none" in line
    assert not (tmp_path / "run").exists()
