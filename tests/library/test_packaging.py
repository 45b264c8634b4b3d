"""The source distribution, wheels, what building leaves behind, and sources that hide an
installation."""

import os
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import native_build
import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = ("CMakeLists.txt", "CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md")
FILES += ("pyproject.toml", "setup.py")
#: What setuptools adds.
ADDED = ("PKG-INFO", "setup.cfg", "clsd_fast.egg-info")


def files(folder: Path, *patterns: str) -> set[str]:
    found = {path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()}
    return {str(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts}


PYTHON = files(ROOT / "clsd_fast", "*.py", "py.typed")
PYTHON |= files(ROOT / "python", "*.py", "*.pyi", "*.yaml")
SOURCES = {*FILES, *PYTHON, *files(ROOT / "csrc", "*"), *files(ROOT / "cmake", "*")}


def run(
    *command: object, cwd: Path, python: object = sys.executable, **environment: str
) -> subprocess.CompletedProcess:
    result = subprocess.run(
        [python, *map(str, command)],
        cwd=cwd,
        env={
            **{name: value for name, value in os.environ.items() if name != "CLSD_FAST_BUILD"},
            "CLSD_FAST_NATIVE": "off",
            "PYTHONPATH": "",
            **environment,
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the sources, as setup.py sees them."""
    if find_spec("setuptools") is None:
        pytest.skip("needs setuptools")
    copy = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def unpacked(checkout, tmp_path_factory):
    """The source distribution that is made of the checkout."""
    folder = tmp_path_factory.mktemp("sdist")
    run("setup.py", "-q", "sdist", "--dist-dir", folder, cwd=checkout)
    (archive,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder)
    return folder / archive.name.removesuffix(".tar.gz")


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_source_distribution_has_what_a_build_needs(unpacked):
    assert {name for name in names(unpacked) if not name.startswith(ADDED)} == SOURCES


def test_a_wheel_has_the_packages_and_leaves_nothing_behind(unpacked, tmp_path):
    before = names(unpacked)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path)
    run("-m", "pip", "-q", "wheel", *options, ".", cwd=unpacked)
    assert names(unpacked) == before
    (wheel,) = tmp_path.glob("*.whl")
    built = {name for name in zipfile.ZipFile(wheel).namelist() if "dist-info" not in name}
    assert built == {name.removeprefix("python/") for name in PYTHON}


USE = """
from clsd_fast.backend import native
from clsd_train import _host
print(native.LIBRARY, _host.__file__, sep="\\n")
"""


@pytest.mark.thorough
def test_a_native_wheel_runs_in_a_fresh_environment(tmp_path):
    """One that has this one's torch: its own would be hundreds of megabytes to fetch."""
    packages = [name for name in ("setuptools", "pybind11") if find_spec(name) is None]
    tomllib = pytest.importorskip("tomllib")  # new in Python 3.11
    if missing := native_build.missing() or ", ".join(packages):
        pytest.skip(f"needs {missing}")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path)
    kept = ROOT / os.environ.get("CLSD_FAST_BUILD", tmp_path / "build")  # then all is compiled
    switches = {"NATIVE": "on", "CUDA": "off", "BUILD": str(kept)}
    environment = {f"CLSD_FAST_{name}": value for name, value in switches.items()}
    run("-m", "pip", "-q", "wheel", *options, ".", cwd=ROOT, **environment)
    (wheel,) = tmp_path.glob("*.whl")
    # _host is of one version of Python, though _C is of all.
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{python}-{python}-{sysconfig.get_platform().replace('-', '_')}.whl" in wheel.name
    packed = zipfile.ZipFile(wheel).namelist()
    libraries = {name for name in packed if name.endswith(".so")}
    host = f"clsd_train/_host{sysconfig.get_config_var('EXT_SUFFIX')}"
    assert libraries == {"clsd_fast/_C.so", host}

    venv.create(tmp_path / "fresh", with_pip=False)
    python = tmp_path / "fresh" / "bin" / "python"
    (packages,) = (tmp_path / "fresh").glob("lib/python*/site-packages")
    run("-m", "pip", "-q", f"--python={python}", "install", "--no-deps", wheel, cwd=tmp_path)
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
    result = run("-c", USE, cwd=tmp_path, python=python)
    assert result.stdout.splitlines() == [str(packages / name) for name in sorted(libraries)]
    run(python.with_name("clsd"), "--version", cwd=tmp_path, python=python)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    interpreter, *command = shlex.split(settings["test-command"])
    assert interpreter == "python"
    run(*command, cwd=tmp_path, python=python)


@pytest.mark.thorough
def test_a_kept_build_folder(unpacked, tmp_path):
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path)
    kept = tmp_path / "kept"
    run("-m", "pip", "-q", "wheel", *options, ".", cwd=unpacked, CLSD_FAST_BUILD=str(kept))
    assert list(kept.rglob("residual_block.py"))


@pytest.mark.parametrize("name", ["pybind11", "torch"])
def test_what_a_build_lacks_is_one_line(checkout, name):
    """As where nothing but setuptools is installed."""
    program = f"""
import runpy, sys
sys.modules[{name!r}] = None
sys.argv = ["setup.py", "-q", "build_ext"]
runpy.run_path("setup.py", run_name="__main__")
"""
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=checkout, capture_output=True, text=True
    )
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"setup.py: expected {name} (pip install '{name}>=2.1"), line


SHADOWED = "import warnings; warnings.simplefilter('always'); import clsd_fast"


def warning(folder: Path, *path: Path, site: bool = True) -> str:
    options = () if site else ("-S",)
    paths = os.pathsep.join(map(str, path))
    return run(*options, "-c", SHADOWED, cwd=folder, PYTHONPATH=paths).stderr


def test_sources_that_hide_an_installation_say_so_once(checkout, tmp_path):
    installed = tmp_path / "clsd_fast" / "_C.so"
    installed.parent.mkdir()
    installed.touch()
    (line,) = (line for line in warning(checkout, tmp_path).splitlines() if "Warning" in line)
    assert (
        f"clsd_fast: expected the installation {installed.parent}, got the sources "
        f"{checkout / 'clsd_fast'} in its place, which have no native library: calls run on the "
        "reference backend; start Python in another folder"
    ) in line


@pytest.mark.thorough
def test_no_warning_without_an_installation_or_without_sources(checkout, tmp_path):
    others = tmp_path / "others"  # all that is installed beside this package
    (others / "clsd_fast").mkdir(parents=True)
    for installed in Path(site.getsitepackages()[0]).iterdir():
        if not installed.name.startswith(("clsd_fast", "clsd_train", "__editable__")):
            (others / installed.name).symlink_to(installed)
    assert "clsd_fast:" not in warning(checkout, others, site=False)
    plain = tmp_path / "plain"  # installed without native code, before an installation with it
    shutil.copytree(checkout / "clsd_fast", plain / "clsd_fast")
    (others / "clsd_fast" / "_C.so").touch()
    assert "clsd_fast:" not in warning(tmp_path, plain, others)
