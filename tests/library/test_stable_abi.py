"""One binary for every torch from 2.10 on: it needs nothing but the stable interface of that."""

import re
import shutil
import subprocess

import pytest
import torch.utils.cpp_extension

from clsd_fast.backend import native

HEADERS = ("torch/csrc/stable/c/shim.h", "torch/csrc/inductor/aoti_torch/c/shim.h")
#: As in CMakeLists.txt.
TARGET = "TORCH_TARGET_VERSION=0x020a000000000000ULL"


def output(*command, **options):
    tool = shutil.which(command[0])
    if tool is None:
        pytest.skip(f"needs {command[0]}")
    arguments = map(str, command[1:])
    return subprocess.run(
        [tool, *arguments], capture_output=True, text=True, check=True, **options
    ).stdout


@pytest.fixture(scope="module")
def declared():
    """The functions of the stable interface of torch 2.10."""
    source = "".join(f"#include <{header}>\n" for header in HEADERS)
    include = torch.utils.cpp_extension.include_paths()[0]
    options = ("-E", "-P", "-x", "c++", f"-D{TARGET}", "-DUSE_CUDA", f"-I{include}", "-")
    text = output("c++", *options, input=source)
    return set(re.findall(r"\b((?:aoti_)?torch_\w+)\(", text))


def test_what_newer_headers_declare_is_not_of_it(declared):
    assert "torch_library_impl" in declared  # which came with 2.10
    assert "torch_dtype_float8_e8m0fnu" not in declared  # with 2.11


@pytest.mark.parametrize("library", [native.LIBRARY, native.CUDA_LIBRARY], ids=lambda p: p.name)
def test_what_a_library_needs_of_torch(declared, library):
    """Symbols of the system's libraries have versions, but for those of C++ that torch has, too."""
    if not library.exists():
        pytest.skip(f"needs {library.name}, which was not built")
    lines = output("nm", "-DC", "--undefined-only", library).splitlines()
    symbols = (line.strip().partition(" ") for line in lines)
    needed = {name for kind, _, name in symbols if kind == "U" and "@" not in name}
    needed = {name for name in needed if not name.startswith("std::")}
    assert "aoti_torch_library_init_impl" in needed
    assert needed <= declared


def test_the_target_is_the_build_s():
    source = native.PACKAGE.parent / "CMakeLists.txt"
    if not source.exists():
        pytest.skip("needs the sources")
    assert TARGET in source.read_text()
