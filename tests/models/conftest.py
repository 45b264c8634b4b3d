"""The operators that replaced modules call."""

import pytest

from clsd_fast._accelerate import blocks, convs, sequences

OPERATORS = {
    "conv3x3": (convs, blocks, sequences),
    "residual_block": (blocks,),
    "residual_blocks": (sequences,),
    "pixel_shuffle_upsample": (sequences,),
    "upsample_tail": (sequences,),
}


@pytest.fixture
def calls(native, monkeypatch):
    """The names of the operators that replaced modules call, in their order."""
    called = []

    def recorded(name, function):
        return lambda *args, **options: called.append(name) or function(*args, **options)

    for name, modules in OPERATORS.items():
        for module in modules:
            monkeypatch.setattr(module, name, recorded(name, getattr(module, name)))
    return called
