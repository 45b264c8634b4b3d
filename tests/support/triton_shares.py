"""Prints how much of a GPU's tensor cores the convolutions' Triton kernels use, by the model of
`sass_time`: one JSON object for each that multiplies. ``python triton_shares.py h100``"""

import json
import sys
from pathlib import Path

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "tools")]
import sass_clock  # noqa: E402 - found there
import torch  # noqa: E402
import triton_code  # noqa: E402

from support.triton_convolutions import chain, on_architecture  # noqa: E402


def main(name: str) -> None:
    card = sass_clock.CARDS[name]
    compiled = triton_code.compiler(card.architecture)
    with on_architecture(card.architecture.removesuffix("a")), triton_code.recorded() as calls:
        chain(torch.bfloat16)
    seen: set[int] = set()
    for call in calls:
        kernel, launch = compiled(call)
        if id(kernel) in seen or not any(i.kind.endswith("MMA") for i in kernel.code):
            continue
        seen.add(id(kernel))
        prediction = sass_clock.predict(kernel, launch, card)
        found = {"kernel": call.kernel.fn.__name__, "share": prediction.tensor_share}
        print(json.dumps({**found, "us": prediction.us}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
