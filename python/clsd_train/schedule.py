"""The learning rate."""

import math

from .config import TrainConfig


def learning_rate(options: TrainConfig, iteration: int) -> float:
    """The rate of an iteration, counted from 1.

    A function of the configuration alone: a resumed run cannot inherit another run's schedule.
    """
    risen = min(1.0, iteration / options.warm_up) if options.warm_up else 1.0
    if options.schedule == "cosine":
        return risen * _cosine(options, iteration)
    milestones = (round(fraction * options.iterations) for fraction in options.milestones)
    passed = sum(milestone < iteration for milestone in milestones)
    return risen * options.learning_rate * options.gamma**passed


def _cosine(options: TrainConfig, iteration: int) -> float:
    """Half a wave over the run (Loshchilov and Hutter, arXiv 1608.03983, without restarts)."""
    done = min(1.0, (iteration - 1) / options.iterations)
    height = options.learning_rate - options.learning_rate_end
    return options.learning_rate_end + height * (1 + math.cos(math.pi * done)) / 2
