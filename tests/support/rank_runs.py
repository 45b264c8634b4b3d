"""A program: runs of one process and of several, as torchrun starts them, from one import.

Arguments: a folder with images in ``hr``; and, to end a rank in the middle, ``die``, or ``restart``
in a program that torchrun itself starts.
"""

import json
import os
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from clsd_train.config import Config
from clsd_train.errors import UserError
from clsd_train.loop import Run

CASES = {
    "baseline sgd": {"method": "baseline"},
    "ds sgd": {"method": "ds"},
    "clsd sgd": {"method": "clsd"},
    "baseline adam": {"method": "baseline"},
    "ds adam": {"method": "ds"},
    "clsd adam": {"method": "clsd"},
    "ds sgd, in parts": {"method": "ds", "train": {"accumulate": 4}},
    "ds adam, in parts": {
        "method": "ds",
        "train": {"accumulate": 2, "clip": 0.1, "ema": 0.9, "log_every": 3},
    },
}


def configure(folder: Path, name: str, output: str) -> Config:
    case = CASES[name]
    train = {"iterations": 20, "batch_size": 8, "log_every": 1, "eval_every": 10, "threads": 1}
    train |= {"learning_rate": 1e-2 if "sgd" in name else 1e-3, "save_every": 10}
    return Config.model_validate({
        "method": case.get("method", "clsd"),
        "model": {"num_blocks": 2, "channels": 8},
        "heads": {"taps": (1, 2), "blocks": 1, "projection_dim": 8},
        "data": {"train": folder / "hr", "val": folder / "hr", "patch_size": 8,
                 "cache": folder / "cache"},
        "train": train | case.get("train", {}),
        "output": folder / output / name,
    })  # fmt: skip


def train(folder: Path, name: str, output: str, resume: bool = False) -> Run:
    run = Run(configure(folder, name, output), resume)
    if "sgd" in name:
        parameters = [p for p in run.model.parameters() if p.requires_grad]
        run.step.optimizer = torch.optim.SGD(parameters, run.step.rate, fused=True)
    if "parts" in name and run.ranks.size > 1:
        run.ranks.wrap = partial(wrap_counted, run.ranks.wrap)
    run.train()
    return run


def wrap_counted(wrap, *arguments):
    """The wrapped model, which counts how often it exchanges gradients."""

    def exchange(state, bucket):
        exchanges.append(bucket.index())
        return allreduce_hook(None, bucket)

    model = wrap(*arguments)
    model.register_comm_hook(None, exchange)
    return model


exchanges: list[int] = []


def summary(run: Run) -> dict:
    """What is equal whatever the number of ranks, and how often these exchanged gradients."""
    weights = torch.cat([p.detach().flatten() for p in run.model.parameters()])
    return {
        "weights": weights.tolist(),
        "history": run.history.entries,
        "exchanges": len(exchanges),
    }


def on_ranks(function, size: int) -> list[int]:
    """The exit codes of processes that call function."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    processes = []
    for rank in range(size):
        os.environ["RANK"] = str(rank)
        process = os.fork()
        if not process:
            code = 1
            try:
                function(rank)
                code = 0
            except UserError as error:
                print(error, file=sys.stderr)
                code = 2
            finally:
                sys.stderr.flush()
                os._exit(code)
        processes.append(process)
    del os.environ["RANK"], os.environ["WORLD_SIZE"]
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def compare(folder: Path) -> None:
    """Each case alone and on two ranks: results in ``alone.json`` and ``ranks.json``."""
    results: dict[str, dict] = {"alone": {}, "ranks": {}}
    for name in CASES:
        results["alone"][name] = summary(train(folder, name, "alone"))

        def on_rank(rank, name=name):
            run = train(folder, name, "ranks")
            if rank == 0:
                (folder / "result.json").write_text(json.dumps(summary(run)))

        assert on_ranks(on_rank, 2) == [0, 0]
        results["ranks"][name] = json.loads((folder / "result.json").read_text())
    (folder / "results.json").write_text(json.dumps(results))


def die(folder: Path) -> None:
    """A rank is killed after some steps; the other ends by itself."""

    def on_rank(rank):
        step = Run._step

        def killed(run):
            if rank == 1 and run.iteration == 12:
                os.kill(os.getpid(), signal.SIGKILL)
            step(run)

        Run._step = killed
        train(folder, "clsd adam", "died")

    print(on_ranks(on_rank, 2))
    on_ranks(lambda rank: train(folder, "clsd adam", "died", resume=True), 2)


def restart(folder: Path) -> None:
    """A rank of torchrun's, one of which is killed the first time."""
    step = Run._step
    first_time = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"

    def killed(run):
        if first_time and run.ranks.rank == 1 and run.iteration == 12:
            os.kill(os.getpid(), signal.SIGKILL)
        step(run)

    Run._step = killed
    if not first_time:  # so that one looks for the other before that says where it is
        time.sleep(2 * int(os.environ["RANK"]))
    train(folder, "clsd adam", "restarted", resume=True)
    os._exit(0)  # as the command does


if __name__ == "__main__":
    torch.set_num_threads(1)
    programs = {"compare": compare, "die": die, "restart": restart}
    programs["".join(sys.argv[2:]) or "compare"](Path(sys.argv[1]))
