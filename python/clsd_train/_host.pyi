# What csrc/host/sampler.cpp exports.
import numpy as np

class BatchSampler:
    def __init__(
        self,
        lr: list[np.ndarray],
        hr: list[np.ndarray],
        scale: int,
        patch_size: int,
        batch_size: int,
        seed: int,
    ) -> None: ...
    def sample(self, iteration: int) -> tuple[np.ndarray, np.ndarray]: ...
