"""Each image operator, and inference on a whole image, against plain PyTorch and oneDNN's fusion.

    python benchmarks/ops.py [--table quick|full] [--op residual_block] [--json ops.json]

One row an operator, shape and mode: ``forward`` (no gradient is recorded) or ``forward_backward``
(the gradients of the input and of every parameter). All implementations are modules with the same
weights. Before a row is timed its results are held against plain PyTorch in float64:
``correctness`` is `measure.error_over_bound`, and above `measure.LIMIT` the program ends with
status 1. The baselines:

    eager                plain PyTorch, as in `plain`
    compile              torch.compile of that
    onednn               oneDNN's convolutions with ReLU and addition fused and weights packed
                         beforehand, which is what torch.compile makes of frozen weights
    *_channels_last      the same on channels_last input and weights
"""

import argparse
import copy
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import measure
import plain
import torch
from torch import Tensor, nn

import clsd_fast

CPU = torch.device("cpu")
NUM_INPUTS = 4
#: Side of the piece of an image that inference is checked on: PyTorch's convolutions in float64
#: would take some 5 GB for a whole one.
CHECKED_SIZE = 128

OURS = {
    "conv3x3": clsd_fast.nn.Conv3x3,
    "residual_block": clsd_fast.nn.ResidualBlock,
    "pixel_shuffle_upsample": clsd_fast.nn.PixelShuffleUpsampler,
    "upsample_tail": clsd_fast.nn.UpsampleTail,
    "inference": clsd_fast.EDSR,
}
PLAIN = {
    "conv3x3": plain.conv3x3,
    "residual_block": plain.ResidualBlock,
    "pixel_shuffle_upsample": plain.Upsampler,
    "upsample_tail": plain.make_tail,
    "inference": plain.EDSR,
}


class Case(NamedTuple):
    """What is measured: an entry of OURS and PLAIN, its arguments and the shape of the input."""

    op: str
    arguments: tuple[int, ...]
    shape: tuple[int, int, int, int]


def quick_table() -> list[Case]:
    """What a training step at batch 4 and patch 48 calls, and an image."""
    return [
        Case("residual_block", (64,), (4, 64, 48, 48)),
        Case("pixel_shuffle_upsample", (2, 64), (4, 64, 48, 48)),
        Case("upsample_tail", (2, 64), (4, 64, 48, 48)),
        Case("upsample_tail", (4, 64), (4, 64, 48, 48)),
        Case("conv3x3", (3, 64), (4, 3, 48, 48)),
        Case("conv3x3", (64, 3), (4, 64, 96, 96)),
        Case("inference", (2, 16, 64), (1, 3, 512, 512)),
    ]


def full_table() -> list[Case]:
    batches, sizes, channels, scales = (1, 4, 16), (24, 48, 96, 128), (32, 48, 64, 128), (2, 3, 4)
    product = itertools.product
    return [
        *(
            Case("residual_block", (c,), (n, c, size, size))
            for n, size, c in product(batches, sizes, channels)
        ),
        *(
            Case(op, (scale, 64), (n, 64, size, size))
            for op in ("pixel_shuffle_upsample", "upsample_tail")
            for scale, n, size in product(scales, batches, (24, 48, 96))
        ),
        *(
            Case("conv3x3", (c, k), (n, c, size, size))
            for (c, k), n, size in product(((3, 64), (64, 64), (64, 3)), batches, (48, 96))
        ),
        *(
            Case("inference", (scale, 16, 64), (1, 3, size, size))
            for scale, size in product(scales, (128, 512))
        ),
    ]


TABLES = {"quick": quick_table, "full": full_table}


class OneDnnConv(nn.Module):
    """A convolution by oneDNN with what follows it fused; its weight is packed at the first call.

    Args:
        conv: whose weights it has.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.packed: Tensor | None = None

    def forward(self, x: Tensor, relu: bool = False, residual: Tensor | None = None) -> Tensor:
        if self.packed is None:  # oneDNN chooses the packing by the size of the image
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(
                self.conv.weight.detach(), *self.geometry, x.shape
            )
        convolution = torch.ops.mkldnn._convolution_pointwise
        weights = (self.packed, self.conv.bias, *self.geometry)
        if residual is not None:
            return convolution.binary(x, residual, *weights, "add", 1.0, None, [], None)
        return convolution(x, *weights, "relu" if relu else "none", [], "")


class OneDnnResidualBlock(nn.Module):
    def __init__(self, block: plain.ResidualBlock) -> None:
        super().__init__()
        self.first, self.second = OneDnnConv(block.body[0]), OneDnnConv(block.body[2])

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x, relu=True), residual=x)


def onednn(module: nn.Module) -> nn.Module:
    """A plain module on oneDNN's fused convolutions; changed in place, or replaced."""
    if isinstance(module, plain.ResidualBlock):
        return OneDnnResidualBlock(module)
    if isinstance(module, nn.Conv2d):
        return OneDnnConv(module)
    for name, child in module.named_children():
        setattr(module, name, onednn(child))
    return module


class Inputs(NamedTuple):
    """Inputs that calls rotate over, and gradients of the outputs."""

    x: list[Tensor]
    grad: list[Tensor]

    def to(self, **placement: Any) -> "Inputs":
        """Copies as leaves of autograd."""
        x = [t.detach().to(**placement).requires_grad_() for t in self.x]
        return Inputs(x, [t.to(**placement) for t in self.grad])


def make_inputs(case: Case, module: nn.Module) -> Inputs:
    """Standard normal features, or for inference images in 0..255."""
    generator = torch.Generator().manual_seed(1)
    draw = torch.rand if case.op == "inference" else torch.randn
    scale = 255 if case.op == "inference" else 1
    x = [scale * draw(case.shape, generator=generator) for _ in range(NUM_INPUTS)]
    with torch.no_grad():
        shape = module(x[0]).shape
    return Inputs(x, [torch.randn(shape, generator=generator) for _ in range(NUM_INPUTS)])


def make_call(module: nn.Module, inputs: Inputs, mode: str) -> Callable[[int], list[Tensor]]:
    """A function from the number of a call to the results of the mode."""
    parameters = [p for p in module.parameters() if p.requires_grad]

    def forward(index: int) -> list[Tensor]:
        with torch.no_grad():
            return [module(inputs.x[index % NUM_INPUTS])]

    def forward_backward(index: int) -> list[Tensor]:
        x, grad = (tensors[index % NUM_INPUTS] for tensors in inputs)
        output = module(x)
        return [output, *torch.autograd.grad(output, [x, *parameters], grad)]

    return forward if mode == "forward" else forward_backward


def make_modules(
    ours: nn.Module, eager: nn.Module, mode: str, compiled: bool
) -> dict[str, nn.Module]:
    """Every implementation by name, each with weights of its own in its memory format."""
    makers = {"ours_contiguous": ours, "ours_channels_last": ours}
    makers |= {"eager": eager, "eager_channels_last": eager}
    if compiled:
        torch.compiler.reset()  # else the rows' versions pile up and the last are not compiled
        makers |= {"compile": eager, "compile_channels_last": eager}
    if mode == "forward" and torch.backends.mkldnn.is_available():
        makers |= {"onednn": eager, "onednn_channels_last": eager}
    modules = {}
    for name, source in makers.items():
        layout = measure.LAYOUTS[measure.layout_of(name)]
        module = copy.deepcopy(source).to(memory_format=layout)
        if name.startswith("compile"):
            module = torch.compile(module, dynamic=False)
        modules[name] = onednn(module) if name.startswith("onednn") else module
    return modules


def make_calls(case: Case, mode: str, compiled: bool) -> dict[str, Callable[[int], list[Tensor]]]:
    """Every implementation by name, and ``reference``, plain PyTorch in float64."""
    torch.manual_seed(0)
    ours, eager = OURS[case.op](*case.arguments), PLAIN[case.op](*case.arguments)
    eager.load_state_dict(ours.state_dict())
    inputs = make_inputs(case, eager)
    by_layout = {n: inputs.to(memory_format=layout) for n, layout in measure.LAYOUTS.items()}
    calls = {
        name: make_call(module, by_layout[measure.layout_of(name)], mode)
        for name, module in make_modules(ours, eager, mode, compiled).items()
    }
    if case.op == "inference":
        inputs = inputs._replace(x=[x[..., :CHECKED_SIZE, :CHECKED_SIZE] for x in inputs.x])
    reference = make_call(eager.double(), inputs.to(dtype=torch.float64), mode)
    return {"reference": reference, **calls}


def checked_results(case: Case, call: Callable[[int], list[Tensor]]) -> list[Tensor]:
    """What the gate compares: all results, or the part of an image that its piece determines."""
    results = call(0)
    if case.op != "inference":
        return results
    scale, num_blocks, _ = case.arguments
    reach = 2 * num_blocks + 4  # a pixel a convolution: blocks, head, end and two of the tail
    size = scale * (CHECKED_SIZE - reach)
    return [image[..., :size, :size] for image in results]


def correctness(case: Case, calls: dict[str, Callable[[int], list[Tensor]]]) -> float:
    """The larger `measure.error_over_bound` of our two memory formats."""
    reference, theirs = (checked_results(case, calls[name]) for name in ("reference", "eager"))
    ours = [checked_results(case, calls[f"ours_{layout}"]) for layout in measure.LAYOUTS]
    return max(measure.error_over_bound(results, reference, theirs) for results in ours)


def benchmark(case: Case, mode: str, options: argparse.Namespace) -> dict[str, Any]:
    """The row of a case and mode."""
    calls = make_calls(case, mode, options.compile)
    figure = correctness(case, calls)
    measure.gate(f"{title(case)} {mode}", figure)
    del calls["reference"]
    times = measure.interleave(calls, CPU, options.rounds, options.seconds)
    return {
        **case._asdict(),
        "mode": mode,
        **measure.summary(times),
        "correctness": figure,
        **measure.environment(CPU),
    }


def title(case: Case) -> str:
    arguments = ", ".join(map(str, case.arguments))
    return f"{case.op}({arguments}) {'x'.join(map(str, case.shape))}"


def print_row(row: dict[str, Any]) -> None:
    case = Case(row["op"], row["arguments"], row["shape"])
    times = "  ".join(
        f"{name.removesuffix('_ms')} {value:.3f}"
        for name, value in row.items()
        if name.endswith("_ms") and isinstance(value, float) and name != "ours_ms"
    )
    print(
        f"{title(case)} {row['mode']}: {row['ratio_vs_eager']:.2f} times eager, "
        f"{row['ratio_vs_best']:.2f} times {row['best_baseline']} "
        f"(errors {row['correctness']:.2f}); ms: {times}",
        flush=True,
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--table", default="quick", choices=TABLES)
    parser.add_argument("--op", choices=OURS, help="only the rows of this operator")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="to time a row for, about")
    parser.add_argument("--rounds", type=int, help="timed calls of a row, instead of --seconds")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--json", type=Path, help="file to write, after every row")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    torch.set_num_threads(options.threads)
    measure.keep_freed_memory()
    rows = []
    for case in TABLES[options.table]():
        if options.op not in (None, case.op):
            continue
        for mode in ("forward",) if case.op == "inference" else ("forward", "forward_backward"):
            rows.append(benchmark(case, mode, options))
            print_row(rows[-1])
            measure.write_json(options.json, rows)


if __name__ == "__main__":
    main()
