"""Which validation was the best."""

import math
from typing import Any


class Best:
    """The best PSNR of a run so far, its iteration, and how many validations have followed it."""

    def __init__(self) -> None:
        self.psnr, self.iteration, self.since = -math.inf, 0, 0

    def add(self, psnr: float, iteration: int) -> bool:
        """Whether it is better than all before."""
        if psnr > self.psnr:
            self.psnr, self.iteration, self.since = psnr, iteration, 0
            return True
        self.since += 1
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"psnr": self.psnr, "iteration": self.iteration, "since": self.since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.psnr, self.iteration = float(state["psnr"]), int(state["iteration"])
        self.since = int(state["since"])
