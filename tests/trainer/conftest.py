import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from clsd_fast import EDSR
from clsd_train.checkpoint import save_student


def pytest_configure(config: pytest.Config) -> None:
    """What is generated is the same each time, and less of it where `thorough` tests are left out:
    30 bad inputs for each of the ways into a command, not 200."""
    settings.register_profile(
        "bad inputs",
        max_examples=30 if "not thorough" in config.option.markexpr else 200,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    settings.load_profile("bad inputs")


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
