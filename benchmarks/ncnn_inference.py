"""Inference of EDSR on a whole image against ncnn, an engine made for it.

    pip install ncnn
    python benchmarks/ncnn_inference.py [--size 512] [--scale 2] [--threads 2] [--json FILE]

The same weights in both, and float32 maps: ncnn has its default options, but for the 16-bit maps
that it chooses on some processors (none with x86 instructions). Before anything is timed, results
on a part of the image are held against plain PyTorch in float64; above `measure.LIMIT` the program
ends with status 1.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import measure
import ncnn
import numpy as np
import plain
import torch
from torch import Tensor, nn

import clsd_fast

CPU = torch.device("cpu")
PART = 64  # side of the part of the image that results are checked on


class Graph:
    """A network as ncnn reads it: lines of layers, and their weights.

    Every blob has one reader, so that what is read twice is split first.
    """

    def __init__(self) -> None:
        self.lines = ["Input image 0 1 image"]
        self.blobs = 1
        self.weights = b""

    def add(self, kind: str, inputs: Sequence[str], options: str = "", outputs: int = 1) -> list:
        """The names of the layer's outputs."""
        number = len(self.lines)
        names = [f"blob{self.blobs + i}" for i in range(outputs)]
        self.blobs += outputs
        fields = [kind, f"layer{number}", str(len(inputs)), str(outputs), *inputs, *names, options]
        self.lines.append(" ".join(fields))
        return names

    def convolution(self, x: str, conv: nn.Conv2d, relu: bool = False) -> str:
        weight = conv.weight.detach().contiguous().numpy()
        padding, side = conv.padding[0], conv.kernel_size[0]
        options = f"0={conv.out_channels} 1={side} 4={padding} 5=1 6={weight.size} 9={int(relu)}"
        # Four bytes of zeros say that float32 numbers follow.
        self.weights += bytes(4) + weight.tobytes() + conv.bias.detach().numpy().tobytes()
        return self.add("Convolution", [x], options)[0]

    def body(self, x: str, body: nn.Sequential) -> str:
        shallow, x = self.add("Split", [x], outputs=2)
        *blocks, last = body
        for block in blocks:
            skip, x = self.add("Split", [x], outputs=2)
            x = self.convolution(x, block.body[0], relu=True)
            x = self.add("BinaryOp", [self.convolution(x, block.body[2]), skip], "0=0")[0]
        return self.add("BinaryOp", [self.convolution(x, last), shallow], "0=0")[0]

    def tail(self, x: str, tail: nn.Sequential) -> str:
        for layer in tail[0]:
            if isinstance(layer, nn.PixelShuffle):
                x = self.add("PixelShuffle", [x], f"0={layer.upscale_factor}")[0]
            else:
                x = self.convolution(x, layer)
        return self.convolution(x, tail[1])

    def write(self, folder: Path) -> None:
        head = f"7767517\n{len(self.lines)} {self.blobs}\n"
        (folder / "param").write_text(head + "\n".join(self.lines) + "\n")
        (folder / "bin").write_bytes(self.weights)


class Engine:
    """A plain EDSR in ncnn: images [1, 3, h, w] to [1, 3, scale h, scale w]."""

    def __init__(self, model: plain.EDSR, threads: int) -> None:
        graph = Graph()
        x = graph.convolution("image", model.sub_mean)
        x = graph.body(graph.convolution(x, model.head[0]), model.body)
        self.output = graph.convolution(graph.tail(x, model.tail), model.add_mean)
        self.net = ncnn.Net()
        self.net.opt.num_threads = threads
        for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
            setattr(self.net.opt, name, False)
        with tempfile.TemporaryDirectory() as folder:
            graph.write(Path(folder))
            failed = self.net.load_param(f"{folder}/param") or self.net.load_model(f"{folder}/bin")
        if failed:
            raise SystemExit("ncnn: expected a network that it can load, got an error")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        extractor = self.net.create_extractor()
        extractor.input("image", ncnn.Mat(image))
        return np.array(extractor.extract(self.output)[1])


def benchmark(options: argparse.Namespace) -> dict:
    torch.manual_seed(0)
    ours = clsd_fast.EDSR(options.scale).eval()
    model = plain.EDSR(options.scale)
    model.load_state_dict(ours.state_dict())
    engine = Engine(model, options.threads)
    image = 255 * torch.rand(1, 3, options.size, options.size)
    errors = check(ours, model, engine, image[..., :PART, :PART].contiguous())
    layouts = {f"ours_{name}": image.to(memory_format=f) for name, f in measure.LAYOUTS.items()}
    array = image[0].numpy()
    calls = {name: lambda _, x=x: ours(x) for name, x in layouts.items()}
    calls["ncnn"] = lambda _: engine(array)
    with torch.inference_mode():
        times = measure.interleave(calls, CPU, options.rounds)
    return {
        **measure.summary(times),
        "errors": errors,
        "settings": {key: value for key, value in vars(options).items() if key != "json"},
        "ncnn_version": ncnn.__version__,
        **measure.environment(CPU),
    }


def check(
    ours: clsd_fast.EDSR, model: plain.EDSR, engine: Engine, image: Tensor
) -> dict[str, float]:
    """`measure.error_over_bound` of each; the program ends if one is wrong."""
    with torch.inference_mode():
        theirs = model(image)
        results = {"ours": ours(image), "ncnn": torch.from_numpy(engine(image[0].numpy()))[None]}
        reference = model.double()(image.double())
    errors = {
        name: measure.error_over_bound([result], [reference], [theirs])
        for name, result in results.items()
    }
    for name, error in errors.items():
        measure.gate(name, error)
    return errors


def print_table(result: dict) -> None:
    print(f"{result['device']}, {result['threads']} threads, ncnn {result['ncnn_version']}")
    for name in ("ours_contiguous", "ours_channels_last", "ncnn"):
        error = result["errors"].get(name, result["errors"]["ours"])
        print(f"{name:20}{result[f'{name}_ms']:9.1f} ms, errors {error:.2f} times the bound")
    print(f"ours is {result['ratio_vs_best']:.2f} times as fast as ncnn")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--size", type=int, default=512, help="side of the image, at least 64")
    parser.add_argument("--scale", type=int, default=2, choices=(2, 3, 4))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10, help="timed calls of each")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args(argv)
    measure.prepare(options.threads)
    result = benchmark(options)
    measure.write_json(options.json, result)
    print_table(result)


if __name__ == "__main__":
    main()
