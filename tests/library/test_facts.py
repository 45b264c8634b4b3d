"""What two files have to say alike, and what only one may."""

import re
from pathlib import Path
from typing import get_args

import pytest

import clsd_fast
from clsd_fast import backend, distill
from clsd_fast._library import SCHEMAS
from clsd_fast._tail_axes import STAGES
from clsd_fast.backend import cuda
from clsd_fast.backend import triton as triton_backend
from clsd_fast.ops.residual_blocks import SECTION
from clsd_train.config import Config, HeadsConfig

ROOT = Path(__file__).resolve().parents[2]
PYTHON_SOURCES = [
    path for folder in ("clsd_fast", "python/clsd_train") for path in (ROOT / folder).rglob("*.py")
]
#: Names of PyTorch's that begin with an underscore, but not those that Python itself so spells.
PRIVATE = re.compile(r"\btorch(?:\.\w+)*\._(?!_\w+__)\w+|\bfrom torch[\w.]* import (?:\w+, )*_\w+")


def choices(model, field):
    return set(get_args(model.model_fields[field].annotation))


@pytest.mark.parametrize(
    "name, value",
    [
        ("kChannelMultiple", cuda.MULTIPLE),
        ("kFewChannels", cuda.FEW),
        ("kLargestChannels", cuda.LARGEST),
    ],
)
def test_channels_of_the_cuda_kernels(name, value):
    """What is asked before a call is what the operators check."""
    source = (ROOT / "csrc" / "cuda" / "convolution.h").read_text()
    assert re.findall(rf"\b{name} = (\d+)", source) == [str(value)]


def test_a_section_of_blocks_fills_a_launch():
    """Two convolutions a block: what a section packs, and whose gradients it computes, at once."""
    for file, name in (("packing.cuh", "kMaxPackings"), ("wgrad.h", "kMaxWeightGradients")):
        source = (ROOT / "csrc" / "cuda" / file).read_text()
        assert re.findall(rf"\b{name} = (\d+)", source) == [str(2 * SECTION)]


def test_the_trainer_takes_what_the_models_take():
    # vgg_ratio needs weights that the models have not.
    assert choices(HeadsConfig, "contrast") == {*distill.CONTRASTS, "vgg_ratio"}
    assert choices(HeadsConfig, "skip") == set(distill.SKIPS)
    assert choices(Config, "scale") == set(STAGES)


def test_documents_name_every_contrast_and_backend():
    readme = (ROOT / "README.md").read_text()
    losses = re.search(r"the losses \(([^)]*)\)", readme.replace("\n", " ")).group(1)
    assert re.findall(r"`(\w+)`", losses) == list(distill.CONTRASTS)
    table = re.findall(r"^    (\w+)  +\S", clsd_fast.CLSD.__doc__, re.MULTILINE)
    assert table == ["contrast", *distill.CONTRASTS]
    names = re.search(r"`use_backend\((.*)\)`", readme).group(1)
    assert re.findall(r'"(\w+)"', names) == list(backend.BACKENDS)


def test_triton_operators_have_their_modules():
    assert set(triton_backend.OPERATORS) <= SCHEMAS.keys()
    for op in triton_backend.OPERATORS:
        assert (ROOT / "clsd_fast" / "triton" / f"{op}.py").is_file()


def test_the_changelog_begins_with_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## (\S+)", changelog, re.MULTILINE).group(1) == clsd_fast.__version__


def test_private_names_of_pytorch_are_in_one_module():
    users = {path.relative_to(ROOT) for path in PYTHON_SOURCES if PRIVATE.search(path.read_text())}
    assert users == {Path("clsd_fast/_torch.py")}


@pytest.mark.parametrize(
    "line, private",
    [
        ("torch._C._dispatch_keys(x)", True),
        ("torch.nn.functional._canonical_mask(x)", True),
        ("from torch._C import something", True),
        ("from torch.distributed import _functional_collectives as c", True),
        ("from torch.utils import data, _pytree", True),
        ("torch.__version__", False),
        ("from .._torch import all_gather", False),
        ("torch.ops.clsd_fast.conv3x3_backward", False),
    ],
)
def test_what_is_private(line, private):
    assert bool(PRIVATE.search(line)) is private
