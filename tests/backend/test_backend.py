import os
import subprocess
import sys
import warnings
from contextlib import nullcontext
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import pytest
import torch
from support.util import rand

import clsd_fast
from clsd_fast import backend, env
from clsd_fast.backend import native as native_backend
from clsd_fast.backend import triton as triton_backend


@pytest.fixture
def without_library(monkeypatch):
    monkeypatch.setattr(native_backend, "devices", frozenset())
    monkeypatch.setattr(native_backend, "missing", "_C.so was not built for this installation")


def convolve():
    return clsd_fast.conv3x3(rand(1, 2, 3, 3), rand(2, 2, 3, 3))


def test_setter_and_context_manager():
    before = backend.current_backend()
    with clsd_fast.use_backend("reference"):
        assert backend.current_backend() == "reference"
        with clsd_fast.use_backend("auto"):
            assert backend.current_backend() == "auto"
        assert backend.current_backend() == "reference"
    assert backend.current_backend() == before
    clsd_fast.use_backend("reference")
    assert backend.current_backend() == "reference"
    clsd_fast.use_backend(before)


def test_unknown_name():
    with pytest.raises(
        ValueError, match="expected one of auto, native, triton, reference, got 'cuda'"
    ):
        clsd_fast.use_backend("cuda")


def test_native_raises_without_the_library(without_library):
    message = "conv3x3: expected a native kernel for cpu tensors, got none .* was not built"
    with clsd_fast.use_backend("native"), pytest.raises(RuntimeError, match=message):
        convolve()


def test_native_raises_for_another_device():
    x, weight = torch.empty(1, 2, 3, 3, device="meta"), torch.empty(2, 2, 3, 3, device="meta")
    message = "conv3x3: expected a native kernel for meta tensors, got none"
    with clsd_fast.use_backend("native"), pytest.raises(RuntimeError, match=message):
        clsd_fast.conv3x3(x, weight)


def test_auto_falls_back_without_the_library(without_library):
    expected = torch.nn.functional.conv2d(rand(1, 2, 3, 3), rand(2, 2, 3, 3), padding=1)
    with clsd_fast.use_backend("auto"):
        torch.testing.assert_close(convolve(), expected)


def test_auto_is_native_where_it_can(native):
    x, weight = rand(1, 2, 3, 3).requires_grad_(), rand(2, 2, 3, 3)
    with clsd_fast.use_backend("auto"):
        assert "clsd_fast" in clsd_fast.conv3x3(x, weight).grad_fn.name()
    with clsd_fast.use_backend("reference"):
        assert "clsd_fast" not in clsd_fast.conv3x3(x, weight).grad_fn.name()


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_environment_variable():
    code = "import clsd_fast.backend as b; print(b.current_backend())"
    assert run_python(code, CLSD_FAST_BACKEND="reference").stdout == "reference\n"
    failed = run_python(code, CLSD_FAST_BACKEND="fast")
    assert (
        "CLSD_FAST_BACKEND: expected one of auto, native, triton, reference, got 'fast'"
        in failed.stderr
    )


def test_env_reports_a_missing_library(without_library, capsys):
    env.main()
    printed = capsys.readouterr().out
    assert "missing: _C.so was not built for this installation" in printed
    assert "CPU calls run on the reference backend" in printed


def test_env_reports_the_loaded_library(native, capsys):
    env.main()
    assert f"loaded from {native_backend.LIBRARY}" in capsys.readouterr().out


def test_a_library_that_does_not_load_is_remembered(monkeypatch, tmp_path):
    broken = tmp_path / "_C.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(native_backend, "LIBRARY", broken)
    for name in ("devices", "missing", "cuda_missing", "cuda_operators"):
        monkeypatch.setattr(native_backend, name, getattr(native_backend, name))
    monkeypatch.setattr(torch.version, "cuda", None)
    native_backend.load()
    assert native_backend.devices == frozenset()
    assert native_backend.missing.startswith("_C.so does not load: ")


def set_capability(monkeypatch, major, minor):
    properties = SimpleNamespace(major=major, minor=minor)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


@pytest.fixture
def cuda_library(monkeypatch):
    """As if _C_cuda had been loaded, beside a GPU of compute capability 8.0."""
    monkeypatch.setattr(native_backend, "devices", frozenset({"cpu", "cuda"}))
    monkeypatch.setattr(native_backend, "cuda_missing", None)
    monkeypatch.setattr(native_backend, "cuda_operators", frozenset({"conv3x3"}))
    monkeypatch.setattr(native_backend, "_reasons", {None: None})
    monkeypatch.setattr(triton_backend, "missing", "left out")
    set_capability(monkeypatch, 8, 0)


class OnGpu:
    """What a backend is chosen by."""

    device = torch.device("cuda")

    def __init__(self, dtype=torch.bfloat16):
        self.dtype = dtype


@pytest.mark.parametrize(
    "dtype, shape, factor, why_not",
    [
        (torch.bfloat16, (64, 64, 3, 3), 1, None),
        (torch.float16, (16, 256, 3, 3), 1, None),
        (torch.float16, (576, 64, 3, 3), 3, None),
        (torch.float32, (64, 64, 3, 3), 1, "x of dtype bfloat16 or float16 .*, got float32"),
        (torch.float16, (64, 3, 3, 3), 1, None),
        (torch.float16, (3, 64, 3, 3), 1, None),
        (torch.bfloat16, (4, 64, 3, 3), 1, r"channels in .* of shape \[4, 64, 3, 3\]"),
        (torch.bfloat16, (12, 64, 3, 3), 2, r"channels in .* of shape \[12, 64, 3, 3\]"),
        (torch.bfloat16, (64, 272, 3, 3), 1, "channels in multiples of 16 up to 256, or up"),
        (torch.bfloat16, (96, 64, 3, 3), 2, r"channels in .* of shape \[96, 64, 3, 3\]"),
    ],
)
def test_cuda_kernels_serve_some_calls(cuda_library, dtype, shape, factor, why_not):
    call = OnGpu(dtype), torch.empty(shape)
    with clsd_fast.use_backend("auto"):
        served = backend.implementation("conv3x3", *call, upscale_factor=factor)
        assert served == ("reference" if why_not else "native")
    if why_not:
        message = f"conv3x3: expected {why_not}"
        with clsd_fast.use_backend("native"), pytest.raises(RuntimeError, match=message):
            backend.implementation("conv3x3", *call, upscale_factor=factor)


def test_cuda_kernels_need_a_recent_gpu(cuda_library, monkeypatch):
    set_capability(monkeypatch, 7, 5)
    message = "conv3x3: expected a GPU of compute capability 8.0, got 7.5"
    with clsd_fast.use_backend("native"), pytest.raises(RuntimeError, match=message):
        backend.implementation("conv3x3", OnGpu(), torch.empty(16, 16, 3, 3))


def test_a_gpu_that_the_library_does_not_run_on(cuda_library, monkeypatch):
    """Said once, then served by what is left."""
    monkeypatch.setattr(native_backend, "_reasons", {})
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    reason = "a driver for CUDA 13.0, got one for CUDA 12.8"
    monkeypatch.setattr(native_backend, "_ask_cuda_library", lambda: reason)
    call = OnGpu(), torch.empty(16, 16, 3, 3)
    with clsd_fast.use_backend("auto"):
        with pytest.warns(UserWarning, match=f"expected {reason}; .* without native kernels"):
            assert backend.implementation("conv3x3", *call) == "reference"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert backend.implementation("conv3x3", *call) == "reference"
    with clsd_fast.use_backend("native"), pytest.raises(RuntimeError, match=f"expected {reason}"):
        backend.implementation("conv3x3", *call)


def test_compilers_trace_the_choice(cuda_library):
    """In whole and without a warning, as they give of a functools.cache."""

    def choose(x, weight):
        return x + (backend.implementation("conv3x3", OnGpu(), weight) == "native")

    compiled = torch.compile(choose, backend="eager", fullgraph=True)
    with clsd_fast.use_backend("auto"), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiled(torch.zeros(()), torch.empty(64, 64, 3, 3)) == 1


def test_operators_without_a_cuda_kernel(cuda_library):
    message = r"residual_block: expected an operator with a CUDA kernel \(conv3x3\), got resid"
    with clsd_fast.use_backend("native"):
        assert backend.uses_kernel("conv3x3", OnGpu())
        with pytest.raises(RuntimeError, match=message):
            backend.implementation("residual_block", OnGpu())


@pytest.mark.parametrize(
    "name, on_gpu, on_cpu",
    [("auto", True, True), ("native", True, True), ("triton", False, False)]
    + [("reference", False, False)],
)
def test_asking_for_a_kernel_raises_nothing(cuda_library, name, on_gpu, on_cpu):
    with clsd_fast.use_backend(name):
        assert backend.has_kernel("conv3x3", OnGpu()) is on_gpu
        assert backend.has_kernel("residual_block", OnGpu()) is False
        assert backend.has_kernel("residual_block", torch.empty(1)) is on_cpu


def test_env_reports_the_cuda_library(cuda_library, monkeypatch):
    assert env.report()["native CUDA kernels"].endswith("_C_cuda.so, for conv3x3")
    monkeypatch.setattr(native_backend, "cuda_missing", "this PyTorch is built without CUDA")
    assert env.report()["native CUDA kernels"] == "missing: this PyTorch is built without CUDA"


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("triton", [True, False])
def test_env_says_what_convolves_on_gpus(cuda_library, monkeypatch, native, triton):
    monkeypatch.setattr(native_backend, "cuda_missing", None if native else "left out")
    monkeypatch.setattr(triton_backend, "missing", None if triton else "left out")
    named = env.report()["GPU convolutions"].split(", else ")
    expected = ["native"] * native + ["Triton"] * triton + ["PyTorch"]
    assert [name.split(" ")[0] for name in named] == expected


def similarity(device="cpu"):
    return clsd_fast.pairwise_similarity(torch.ones(2, 3, device=device), torch.ones(1, 3))


@pytest.mark.parametrize("spec", [None, ModuleSpec("triton", None)], ids=["nothing", "a folder"])
def test_triton_raises_without_triton(monkeypatch, spec):
    monkeypatch.setattr(triton_backend, "find_spec", lambda name: spec)
    monkeypatch.setattr(triton_backend, "devices", frozenset())
    monkeypatch.setattr(triton_backend, "missing", None)
    triton_backend.load()
    message = "pairwise_similarity: expected a Triton kernel .*, got none .Triton is not installed"
    with clsd_fast.use_backend("triton"), pytest.raises(RuntimeError, match=message):
        similarity()
    assert env.report()["Triton kernels"].startswith("missing: Triton is not installed")


@pytest.fixture
def triton(monkeypatch):
    """As if Triton had been found and started."""
    monkeypatch.setattr(triton_backend, "devices", frozenset({"cuda"}))
    monkeypatch.setattr(triton_backend, "missing", None)
    monkeypatch.setattr(triton_backend, "_has_started", True)
    set_capability(monkeypatch, 8, 0)


def test_triton_raises_for_cpu_tensors(triton):
    message = "pairwise_similarity: expected cuda tensors for its Triton kernel, got cpu"
    with clsd_fast.use_backend("triton"), pytest.raises(RuntimeError, match=message):
        similarity()


def test_triton_raises_for_an_operator_without_a_kernel():
    message = r"l1_losses: expected an operator with a Triton kernel \(.*info_nce.*\), got l1_"
    with clsd_fast.use_backend("triton"):
        with pytest.raises(RuntimeError, match=message):
            backend.implementation("l1_losses", OnGpu())
        assert not backend.has_kernel("l1_losses", OnGpu())


@pytest.mark.parametrize("spoiled", ["import_module", "driver"])
def test_triton_that_does_not_run(triton, monkeypatch, spoiled):
    """Said once, then GPUs are served without it."""

    def fail(*_):
        raise ImportError("libcuda.so.1: cannot open\nshared object file")

    if spoiled == "import_module":
        monkeypatch.setattr(triton_backend, "import_module", fail)
    else:
        driver = SimpleNamespace(active=SimpleNamespace(get_current_target=fail))
        found = SimpleNamespace(runtime=SimpleNamespace(driver=driver))
        monkeypatch.setattr(triton_backend, "import_module", lambda name: found)
    monkeypatch.setattr(triton_backend, "_has_started", False)
    reason = "ImportError: libcuda.so.1: cannot open"
    call = ("conv3x3", OnGpu(), torch.empty(16, 16, 3, 3))
    with clsd_fast.use_backend("auto"):
        with pytest.warns(UserWarning, match=f"expected Triton to run, got {reason}; GPUs are"):
            assert backend.implementation(*call) == "reference"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert backend.implementation(*call) == "reference"
    message = f"conv3x3: expected a Triton kernel for cuda tensors, got none .{reason}"
    with clsd_fast.use_backend("triton"), pytest.raises(RuntimeError, match=message):
        backend.implementation(*call)
    assert env.report()["Triton kernels"].startswith(f"missing: {reason}; GPU calls run on")


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_auto_convolves_by_triton_where_tensor_cores_do(triton, monkeypatch, dtype, precision):
    """On AMD's GPUs whatever their version; on NVIDIA's from 8.0 on."""
    call = ("conv3x3", OnGpu(dtype), torch.empty(20, 3, 3, 3))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        served = dtype.itemsize == 2 or (dtype == torch.float32 and precision == "high")
        with clsd_fast.use_backend("auto"):
            expected = "triton" if served else "reference"
            assert backend.implementation(*call) == expected
            assert backend.has_kernel(*call) is served
            set_capability(monkeypatch, 7, 5)
            assert backend.implementation(*call) == "reference"
            monkeypatch.setattr(torch.version, "hip", "6.4")
            assert backend.implementation(*call) == expected
        with clsd_fast.use_backend("triton"):
            assert backend.implementation(*call) == "triton"
    finally:
        torch.set_float32_matmul_precision(before)


def test_auto_takes_what_the_device_has(triton, monkeypatch):
    with clsd_fast.use_backend("auto"):
        assert backend.implementation("info_nce", OnGpu()) == "triton"
        assert backend.has_kernel("upsample_tail", OnGpu())
        assert backend.implementation("conv3x3", OnGpu()) == "triton"
        monkeypatch.setattr(triton_backend, "missing", "Triton is not installed")
        assert backend.implementation("info_nce", OnGpu()) == "reference"


def test_importing_the_package_imports_no_triton():
    code = "import clsd_fast, sys; print('triton' in sys.modules)"
    assert run_python(code, CLSD_FAST_BACKEND="auto").stdout == "False\n"


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("conv3x3", ("x", "w", None, None, 1.0, False)),
        ("conv3x3_backward", ("g", "x", "w", 1.0, True, True, True)),
        ("conv3x3s", (["x", "y"], ["w", "w"], [], "r")),
        ("residual_block", ("x", "w", None, "w", None, 1.0, False)),
        ("residual_block_backward", ("g", "x", "h", "w", "w", 1.0, True, True)),
        ("residual_blocks", (["x", "y"], ["w", "w"], [], ["w", "w"], [], 1.0, [1], False)),
        (
            "residual_blocks_backward",
            (["g"], [2], ["x"], ["m"], ["h", "h"], ["w", "w"], ["w", "w"], 1.0, True, True),
        ),
        ("pixel_shuffle_upsample", ("x", "w", None, 2)),
        ("pixel_shuffle_upsample_backward", ("g", "x", "w", 2, True, True, True)),
        ("upsample_tail", ("x", "up", None, None, None, "w", None, 2)),
        ("upsample_tails", (["x", "y"], ["up"] * 2, [], [], [], ["w", "w"], [], None, None, 2)),
        ("info_nce_backward", ("g", "s", "q", "k", None, None, None, None, 1.0, "mean")),
    ],
)
def test_what_an_operator_s_kernel_is_chosen_by(monkeypatch, name, arguments):
    """Its images, or first rows, and all weights of its convolutions; of tails the last ones."""
    asked = []
    monkeypatch.setattr(
        backend, "implementation", lambda *call, **options: asked.append((*call, options))
    )
    backend._subject(name).choice("op", arguments)
    weights = {"conv3x3": 1, "residual_block": 2, "residual_blocks": 4, "pixel_shuffle_upsample": 1}
    weights |= {"conv3x3s": 2, "upsample_tail": 1, "upsample_tails": 2}
    count = weights.get(name.removesuffix("_backward"), 0)
    has_images = any(images in arguments for images in ("x", ["x"], ["x", "y"]))
    tensor = "x" if has_images else "g"
    factor = 2 if arguments[-1] == 2 or "shuffle" in name else 1
    assert asked == [("op", tensor, *["w"] * count, {"upscale_factor": factor})]
