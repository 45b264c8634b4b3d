"""Sizes of the convolutions' blocks, by architecture and kind of arithmetic.

Of a program: rows and columns of pixels, channels of inputs and of outputs, warps, and stages of
the loop's loads. ``benchmarks/tune_triton.py`` writes this file.
"""

Sizes = tuple[int, int, int, int, int, int]

#: Every architecture that is not named.
OTHERS = "others"
CONVOLVE: dict[str, dict[str, Sizes]] = {
    "others": {
        "16-bit": (8, 16, 32, 64, 4, 2),
        "tf32": (8, 8, 32, 64, 4, 2),
        "float32": (8, 8, 16, 64, 4, 2),
        "float64": (4, 8, 16, 16, 4, 1),
    },
    "sm_90": {
        "16-bit": (8, 16, 64, 64, 4, 1),
        "tf32": (8, 8, 32, 64, 4, 2),
        "float32": (8, 8, 16, 64, 4, 2),
        "float64": (4, 8, 16, 16, 4, 1),
    },
}
WEIGHT_GRADIENT: dict[str, dict[str, Sizes]] = {
    "others": {
        "16-bit": (4, 16, 64, 64, 4, 1),
        "tf32": (4, 8, 32, 64, 4, 1),
        "float32": (4, 4, 32, 32, 4, 1),
        "float64": (4, 4, 16, 16, 4, 1),
    },
    "sm_90": {
        "16-bit": (8, 16, 64, 64, 4, 1),
        "tf32": (4, 8, 32, 64, 4, 1),
        "float32": (4, 4, 32, 32, 4, 1),
        "float64": (4, 4, 16, 16, 4, 1),
    },
}
