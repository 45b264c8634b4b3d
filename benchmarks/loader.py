"""The trainer's batches against decoding files, and an iteration of it against a bare step.

    python benchmarks/loader.py [SETTING ...] [--json FILE] [--seconds 5] [--iterations 100]

Settings are those of ``clsd train``, ``paper_x2`` if none is given, always on the CPU; images are
scikit-image's photographs, unless ``data.train`` names others.

**Patches per second**, in rounds that time each once. ``ours`` is the native sampler on the
memory-mapped cache, by ``--workers`` threads: uint8 batches, as a step takes them. ``ours_float``
adds the step's conversion to float32. ``sub_images`` is BasicSR's way: sub-images of 480 HR pixels
and their LR ones lie as PNG, and for each patch a pair is decoded, cropped, flipped, turned and
made float32, in ``--workers`` processes of a DataLoader. It converts what is left of the image
after cropping, which BasicSR does before, and its files are in the system's cache.

**Overhead.** A run of ``clsd train`` takes turns with a step on a batch of float32 images that are
there: model, ``backward``, fused Adam. Batches, conversion, schedule, the sum of losses, log
entries and TensorBoard are the run's; validation, saving, start and end are not counted. The
medians are of as many iterations together as have one log entry.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from clsd_train.build import build_model
from clsd_train.config import Config
from clsd_train.data import Pair, load_training_pairs
from clsd_train.loop import Run
from clsd_train.photographs import copy_photographs
from clsd_train.run_config import read_settings
from clsd_train.sampler import make_sampler

SUB_IMAGE, SUB_STEP = 480, 240
BATCHES_AHEAD = 2  # of each worker, a DataLoader's default
ROUNDS = 5


class SubImages(Dataset):
    """An aligned pair of random patches of each pair of sub-images, float32 [3, h, w].

    Args:
        folder: has the pairs as ``NUMBER.png`` in ``lr`` and ``hr``.
        scale: HR pixels per LR pixel.
        patch_size: side of an LR patch.
    """

    def __init__(self, folder: Path, scale: int, patch_size: int) -> None:
        self.folder, self.scale, self.patch_size = folder, scale, patch_size
        self.names = sorted(path.name for path in (folder / "hr").iterdir())

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        lr, hr = (_decode(self.folder / part / self.names[index]) for part in ("lr", "hr"))
        size, (height, width) = self.patch_size, lr.shape[:2]
        top = int(torch.randint(height - size + 1, ()))
        left = int(torch.randint(width - size + 1, ()))
        transform = int(torch.randint(8, ()))
        return (
            _patch(lr, top, left, size, transform),
            _patch(hr, *(self.scale * length for length in (top, left, size)), transform),
        )


def _decode(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def _patch(image: np.ndarray, top: int, left: int, size: int, transform: int) -> Tensor:
    patch = image[top : top + size, left : left + size]
    if transform & 1:
        patch = patch[:, ::-1]
    if transform & 2:
        patch = patch[::-1]
    if transform & 4:
        patch = patch.swapaxes(0, 1)
    return torch.from_numpy(np.ascontiguousarray(patch.transpose(2, 0, 1))).float()


def write_sub_images(pairs: Sequence[Pair], scale: int, folder: Path) -> None:
    """Cut pairs into those that :class:`SubImages` reads; a smaller image is one."""
    for part in ("lr", "hr"):
        (folder / part).mkdir(parents=True)
    number = 0
    for pair in pairs:
        height, width = pair.hr.shape[:2]
        for top in range(0, max(height - SUB_IMAGE, 0) + 1, SUB_STEP):
            for left in range(0, max(width - SUB_IMAGE, 0) + 1, SUB_STEP):
                for part, image, factor in (("lr", pair.lr, scale), ("hr", pair.hr, 1)):
                    y, x, side = (length // factor for length in (top, left, SUB_IMAGE))
                    cut = np.ascontiguousarray(image[y : y + side, x : x + side])
                    path = folder / part / f"{number:06}.png"
                    Image.fromarray(cut).save(path, compress_level=3)  # BasicSR's
                number += 1


def sampler_rate(
    pairs: list[Pair], config: Config, threads: int, seconds: float, convert: bool
) -> float:
    """Patches per second of the trainer's sampler, whose batches the threads share out."""
    size, scale, count = config.data.patch_size, config.scale, config.train.batch_size
    sampler = make_sampler(pairs, scale, size, count, config.train.seed)

    def fill(thread: int) -> int:
        shapes = [(count, side, side, 3) for side in (size, scale * size)]
        batch = [torch.empty(shape, dtype=torch.uint8) for shape in shapes]
        filled = 0
        while not filled or time.perf_counter() < end:
            sampler.fill(filled * threads + thread, *(images.numpy() for images in batch))
            if convert:
                [images.permute(0, 3, 1, 2).float() for images in batch]
            filled += 1
        return filled

    started = time.perf_counter()
    end = started + seconds
    with ThreadPoolExecutor(threads) as pool:
        batches = sum(pool.map(fill, range(threads)))
    return batches * count / (time.perf_counter() - started)


def sub_image_rate(dataset: SubImages, batch_size: int, workers: int, seconds: float) -> float:
    """Patches per second of a DataLoader, from when its workers have filled its queue."""
    endless = RandomSampler(dataset, replacement=True, num_samples=2**40)
    loader = DataLoader(
        dataset, batch_size, sampler=endless, num_workers=workers, prefetch_factor=BATCHES_AHEAD
    )
    batches = iter(loader)
    for _ in range(2 * workers * BATCHES_AHEAD):
        next(batches)
    started, count = time.perf_counter(), 0
    while not count or time.perf_counter() < started + seconds:
        next(batches)
        count += 1
    return count * batch_size / (time.perf_counter() - started)


def measure_rates(
    pairs: list[Pair], config: Config, options: argparse.Namespace, scratch: Path
) -> dict[str, Any]:
    """Medians over rounds of patches per second."""
    write_sub_images(pairs, config.scale, scratch)
    dataset = SubImages(scratch, config.scale, config.data.patch_size)
    workers, seconds = options.workers, options.seconds
    calls: dict[str, Callable[[], float]] = {
        "ours": lambda: sampler_rate(pairs, config, workers, seconds, convert=False),
        "ours_float": lambda: sampler_rate(pairs, config, workers, seconds, convert=True),
        "sub_images": lambda: sub_image_rate(dataset, config.train.batch_size, workers, seconds),
    }
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            rates[name].append(call())
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {f"{n}_ratio": medians[n] / medians["sub_images"] for n in ("ours", "ours_float")}
    return {"patches_per_second": medians, **ratios, "sub_images": len(dataset)}


class TimedRun(Run):
    """A run that calls ``between`` after each iteration, and notes both times in milliseconds."""

    between: Callable[[], None]
    times: list[tuple[float, float]]

    def _iterate(self, *shown: Any) -> None:
        started = time.perf_counter()
        super()._iterate(*shown)
        middle = time.perf_counter()
        self.between()
        self.times.append((1000 * (middle - started), 1000 * (time.perf_counter() - middle)))


def bare_step(config: Config) -> Callable[[], None]:
    """The step of a loop of one's own, on images that are there."""
    model = build_model(config).train()
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), config.train.learning_rate, fused=True)
    size, count = config.data.patch_size, config.train.batch_size
    lr, hr = (
        (255 * torch.rand(count, 3, side, side)).contiguous(memory_format=torch.channels_last)
        for side in (size, config.scale * size)
    )

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(lr, hr).losses["total"].backward()
        optimizer.step()

    return step


def measure_overhead(config: Config, iterations: int) -> dict[str, Any]:
    """Milliseconds of an iteration of a run and of a bare step, and the run's share on top."""
    every = config.train.log_every
    # The first iterations make buffers; the last one saves.
    length = {"iterations": every + iterations + 1, "save_every": 2**30, "eval_every": 2**30}
    run = TimedRun(
        config.model_copy(update={"train": config.train.model_copy(update=length)}), resume=False
    )
    run.times, run.between = [], bare_step(config)
    run.train()
    blocks = [run.times[i : i + every] for i in range(every, every + iterations, every)]
    trainer, bare = (
        statistics.median(statistics.mean(times) for times in column)
        for column in zip(*(zip(*block, strict=True) for block in blocks), strict=True)
    )
    return {"trainer_ms": trainer, "bare_ms": bare, "overhead": trainer / bare - 1}


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that goes into the JSON file."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        config = configure(options.settings, scratch)
        pairs = load_training_pairs(config.data, config.scale)
        torch.set_num_threads(1)  # of each that makes batches
        rates = measure_rates(pairs, config, options, scratch / "sub-images")
        torch.set_num_threads(options.workers)
        overhead = measure_overhead(config, options.iterations)
        return {
            **rates,
            **overhead,
            "images": len(pairs),
            "workers": options.workers,
            "config": config.model_dump(mode="json"),
            **measure.environment(torch.device("cpu")),
        }


def configure(settings: Sequence[str], scratch: Path) -> Config:
    config = read_settings([*(settings or ["paper_x2"]), "train.device=cpu"])
    data = config.data.model_copy(update={"cache": scratch / "cache", "val": (), "val_sets": {}})
    if not data.train:
        copy_photographs(scratch / "photographs")
        data = data.model_copy(update={"train": (scratch / "photographs" / "train",)})
    return config.model_copy(update={"data": data, "output": scratch / "run"})


def print_table(result: dict[str, Any]) -> None:
    print(f"{result['device']}, {result['workers']} workers, torch {result['torch']}")
    for name, rate in result["patches_per_second"].items():
        ratio = f"  {result[f'{name}_ratio']:.1f} times sub_images" if "ours" in name else ""
        print(f"{name:12}{rate:12,.0f} patches/s{ratio}")
    print(
        f"an iteration {result['trainer_ms']:.2f} ms, a bare step {result['bare_ms']:.2f} ms: "
        f"{100 * result['overhead']:+.1f} %"
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("settings", nargs="*", help="as of clsd train")
    parser.add_argument("--workers", type=int, default=2, help="threads, or processes")
    parser.add_argument("--seconds", type=float, default=5, help="of each in a round")
    parser.add_argument("--iterations", type=int, default=100, help="timed, of the run")
    parser.add_argument("--json", type=Path, help="file to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    result = benchmark(options)
    measure.write_json(options.json, result)
    print_table(result)


if __name__ == "__main__":
    main()
