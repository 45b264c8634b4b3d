"""Loads the native operator library and remembers why it is missing, if it is."""

from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("_C.so")

#: Device types that the loaded libraries have kernels for.
devices: frozenset[str] = frozenset()
#: Why there are no native CPU kernels; None if they are loaded.
missing: str | None = None


def load() -> None:
    """Load ``_C`` beside this file. A missing or unloadable library is recorded, not raised."""
    global devices, missing
    if not LIBRARY.exists():
        missing = f"{LIBRARY.name} was not built for this installation"
        return
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        missing = f"{LIBRARY.name} does not load: {error}"
        return
    devices, missing = frozenset({"cpu"}), None
