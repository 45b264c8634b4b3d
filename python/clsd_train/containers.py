"""The tensors of a network, out of what training codes wrap them and their names in."""

from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import UserError

# Where training codes keep the weights, the best candidate first: averages before what they are of.
CONTAINERS = (
    "params_ema",
    "ema",
    "params",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "generator",
    "weights",
)
# Attributes under which wrappers, training codes and a CLSD hold the network.
WRAPPERS = ("module.", "_orig_mod.", "model.", "net_g.", "generator.", "student.")


def unpack(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of one network, by their names in it.

    They may be in containers, also in several of them, and under wrappers, in any order. What is
    beside them there, as a discriminator, the heads of a CLSD or the counter of an average, is left
    out.

    Raises:
        UserError: if there are none, or those of several networks.
    """
    state = _find(content)
    if state is None:
        raise UserError(f"checkpoint: expected a state_dict, got another object in {path}")
    while any(name.startswith(WRAPPERS) for name in state):
        state = _unwrap(state, path)
    return state


def _find(content: Any) -> dict[str, Tensor] | None:
    """The first state_dict that is content, or in a container of it."""
    candidates, seen = [content], set()
    while candidates:
        candidate = candidates.pop()
        if not isinstance(candidate, dict) or id(candidate) in seen:  # a pickle may be in itself
            continue
        seen.add(id(candidate))
        if candidate and all(
            isinstance(k, str) and isinstance(v, Tensor) for k, v in candidate.items()
        ):
            return candidate
        candidates += [candidate.get(name) for name in reversed(CONTAINERS)]
    return None


def _unwrap(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """What is under wrappers, without the first of them."""
    inner: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith(WRAPPERS):
            name = key.partition(".")[2]
            if name in inner:
                raise UserError(f"checkpoint: expected one network in {path}, got {name} twice")
            inner[name] = value
    return inner
