"""The weights of an EDSR under the names that BasicSR gives them."""

from torch import Tensor

from clsd_fast import EDSR

# Of every EDSR of BasicSR's, and together of no other network of its.
SIGNS = ("conv_first.weight", "body.0.conv1.weight", "conv_after_body.weight", "upsample.0.weight")


def is_basicsr(state: dict[str, Tensor]) -> bool:
    """Whether these are the names of BasicSR's ``EDSR``."""
    return all(sign in state for sign in SIGNS)


def to_basicsr(student: EDSR) -> dict[str, Tensor]:
    """The student's weights as BasicSR's; the mean colour is none there, but an option."""
    state = {k: v for k, v in student.state_dict().items() if "_mean." not in k}
    return _rename(state, _names(student.num_blocks))


def from_basicsr(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """BasicSR's weights as an :class:`clsd_fast.EDSR`'s, with the mean shift that its code has."""
    num_blocks = sum(key.startswith("body.") and key.endswith(".conv1.weight") for key in state)
    names = {theirs: ours for ours, theirs in _names(num_blocks).items()}
    means = EDSR(2, num_blocks=1, channels=1).state_dict()
    return {**_rename(state, names), **{k: v for k, v in means.items() if "_mean." in k}}


def _names(num_blocks: int) -> dict[str, str]:
    """BasicSR's name of each convolution of ours."""
    names = {"head.0": "conv_first", "tail.1": "conv_last", f"body.{num_blocks}": "conv_after_body"}
    names |= {f"tail.0.{index}": f"upsample.{index}" for index in (0, 2, 4)}
    for block in range(num_blocks):
        names |= {f"body.{block}.body.0": f"body.{block}.conv1"}
        names |= {f"body.{block}.body.2": f"body.{block}.conv2"}
    return names


def _rename(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    parts = {key: key.rpartition(".") for key in state}
    return {f"{names.get(p[0], p[0])}.{p[2]}": state[key] for key, p in parts.items()}
