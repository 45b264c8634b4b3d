"""A program: a run that is ended by a signal at random moments and resumed, until it is done.

It forks, so that PyTorch is imported once. Arguments: the settings of ``clsd train``, then the
signal's number, how often it is sent, and a seed.
"""

import os
import random
import signal
import sys
import time

import torch

import clsd_train.loop  # noqa: F401  what a fork would import, too
from clsd_train.cli import main


def start(*arguments):
    """A process that trains; it exits as the command does."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        main(["train", *arguments])
        code = 0
    except SystemExit as stop:
        code = stop.code
    finally:
        os._exit(code)


def finish(process):
    """The exit code, negative for a signal's number."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main_of_test(settings, number, times, seed):
    moments = random.Random(seed)
    started = time.perf_counter()
    assert finish(start(*settings, "output=straight")) == 0
    seconds = time.perf_counter() - started
    hits = 0
    while hits < times:
        process = start(*settings, "output=run", "--resume")
        time.sleep(moments.uniform(0, seconds / 4))
        os.kill(process, number)
        code = finish(process)
        assert code in (0, -number, 128 + number), code
        hits += code != 0
        if code == 0:  # it was done sooner: once more from the beginning
            os.rename("run", f"done-{hits}-{time.perf_counter_ns()}")
    assert finish(start(*settings, "output=run", "--resume")) == 0
    print(hits)


if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    *given, signal_number, count, of_moments = sys.argv[1:]
    main_of_test(given, int(signal_number), int(count), int(of_moments))
