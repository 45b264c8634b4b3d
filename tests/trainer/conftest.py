import os
from pathlib import Path

import pytest
import torch

from clsd_fast import EDSR
from clsd_train.checkpoint import save_student


@pytest.fixture(scope="session")
def image_data() -> Path:
    """The folder of real images that CLSD_DATA names."""
    if "CLSD_DATA" not in os.environ:
        pytest.skip("needs the image folder that CLSD_DATA names")
    return Path(os.environ["CLSD_DATA"])


@pytest.fixture
def student_file(tmp_path: Path) -> Path:
    """A small student, saved."""
    torch.manual_seed(0)
    path = tmp_path / "student.safetensors"
    save_student(EDSR(2, 2, 8), path)
    return path
