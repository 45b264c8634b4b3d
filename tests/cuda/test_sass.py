"""The machine code of the CUDA kernels, for every architecture: no spills, and tensor cores."""

import pytest
import sass_code
import sass_report

#: Kernels that add up or rearrange what others have multiplied, and those that compose tails, in
#: float32.
WITHOUT_PRODUCTS = ("reduce_kernel", "pack_kernel", "lay_out_kernel", "sum_kernel")
WITHOUT_PRODUCTS += ("sum_out_weights_kernel", "l1::")
COMPOSING = ("tail::products_kernel", "tail::compose_kernel", "tail::stage_gradient_kernel")
COMPOSING += ("tail::prepare_gradients_kernel",)


@pytest.fixture(scope="module")
def kernels(readable_library):
    return sass_report.report(readable_library)


def multiplies(kernel):
    return not any(word in kernel.name for word in WITHOUT_PRODUCTS + COMPOSING)


def test_every_architecture_has_every_kernel(kernels):
    names = {kernel.name for kernel in kernels}
    assert any("conv3x3_kernel<Bf16" in name for name in names)
    of = {a: {k.name for k in kernels if k.architecture == a} for a in sass_report.ARCHITECTURES}
    assert all(found == names for found in of.values())


def test_nothing_is_spilled(kernels):
    assert [k for k in kernels if k.stack or k.spills] == []


def test_products_are_on_tensor_cores(kernels):
    """Kernels in namespaces of sm90 are code for that architecture alone, by wgmma."""
    for kernel in filter(multiplies, kernels):
        if "sm90::" not in kernel.name:
            assert kernel.hmma > 0, kernel
        elif kernel.architecture == "sm_90a":
            assert kernel.hgmma > 0, kernel


def test_images_are_loaded_by_16_bytes_or_more(kernels):
    for kernel in filter(multiplies, kernels):
        if "sm90::" not in kernel.name or kernel.architecture == "sm_90a":
            assert kernel.loads16 + kernel.tma > 0, kernel


def test_counts():
    operations = [
        "HMMA.16816.F32.BF16",
        "HGMMA.64x192x16.F32",
        "LDG.E.128.CONSTANT",
        "LDG.E.64",
        "STL.64",
    ] + ["LDGSTS.E.BYPASS.128", "LDL", "STL.U8", "UTMALDG.4D", "FFMA", "LDS.128"]
    counts = sass_report.count(sass_code.Instruction(0, "", name, ()) for name in operations)
    found = {"hmma": 1, "hgmma": 1, "utchmma": 0, "loads16": 2, "spills": 8 + 4 + 1, "tma": 1}
    assert counts == found


def test_listing():
    listing = """
arch = sm_80
		Function : first
        /*0000*/                   LDG.E.128 R4, [R2.64] ;   /* 0x00000a00ff017624 */
                                                             /* 0x000fe400078e00ff */
        /*0010*/             @!P0  HMMA.16816.F32 R4, R4, R8, R4 ;
		Function : second
        /*0000*/              @UP1 STL [R1], R0 ;
"""
    code = sass_code.functions(listing)
    first, second = (sass_report.count(code["sm_80", name]) for name in ("first", "second"))
    assert (first["loads16"], first["hmma"], first["spills"]) == (1, 1, 0)
    assert second["spills"] == 4


@pytest.mark.parametrize(
    "signature, name",
    [
        (
            "void clsd::cuda::few::conv3x3_kernel<clsd::cuda::Fp16, true>"
            "(clsd::cuda::Convolution<clsd::cuda::Fp16>, clsd::cuda::sm80::Grid)",
            "few::conv3x3_kernel<Fp16, true>",
        ),
        ("clsd::cuda::(anonymous namespace)::kernel(float*)", "kernel"),
        ("void kernel<(clsd::cuda::Kind)2, 64>(int)", "kernel<(Kind)2, 64>"),
    ],
)
def test_short_names(signature, name):
    assert sass_code.short_name(signature) == name
