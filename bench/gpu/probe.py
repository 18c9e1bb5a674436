"""Says in one line of JSON which device there is. A process of its own: the runner itself never
holds a CUDA context."""

from __future__ import annotations

import json
import sys

from bench.gpu import exits


def found() -> dict[str, str]:
    """name, slug and torch of the device, or {'problem': why there is none}."""
    try:
        import torch
    except ModuleNotFoundError:
        return {"problem": f"{sys.executable} has no torch (choose another with PYTHON=...)"}
    try:
        from bench import devices  # knows torch

        device = devices.choose("cuda")
    except Exception as error:  # a broken driver has many ways to say so
        return {"problem": str(error)}
    name = device.properties.name
    return {"name": name, "slug": device.slug(), "torch": str(torch.__version__)}


if __name__ == "__main__":
    answer = found()
    print(json.dumps(answer))
    sys.exit(exits.NO_DEVICE if "problem" in answer else exits.COMPLETE)
