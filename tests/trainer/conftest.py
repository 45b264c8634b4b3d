import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def image_data() -> Path:
    """The folder of real images that CLSD_DATA names."""
    if "CLSD_DATA" not in os.environ:
        pytest.skip("needs the image folder that CLSD_DATA names")
    return Path(os.environ["CLSD_DATA"])
