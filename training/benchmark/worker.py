"""One measurement in a process of its own, so that its peak memory is its own: JSON lines out, one a step.

``python -m napari_isdnet_training.benchmark.worker JOB`` with JOB a JSON object, the fields of a
:class:`~napari_isdnet_training.benchmark.process.Job`. The lines are
``{"state": "ready", ...facts}``, then ``{"seconds": s}`` per image, then ``{"state": "done", "peak_bytes": n}``.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from napari_isdnet_training.benchmark.entries import find_entry
from napari_isdnet_training.benchmark.inference import labelling, multiply_adds, place
from napari_isdnet_training.benchmark.process import Job
from napari_isdnet_training.benchmark.refine import find_refinement
from napari_isdnet_training.sources import normalised

from napari_isdnet.engine.device import choose, peak_rss_bytes, set_threads
from napari_isdnet.io.world import ProceduralWorld
from napari_isdnet.model.header import IMAGENET_MEAN, IMAGENET_STD
from napari_isdnet.system import leave
from napari_isdnet.window import Window


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


@torch.inference_mode()
def measure(job: Job) -> None:
    """Build, warm up, time."""
    set_threads(job.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = job.prepared
    placement = choose(job.device, job.precision)
    entry, size = find_entry(job.entry, job.options), (job.size[0], job.size[1])
    torch.manual_seed(0)
    network = entry.make(job.classes)
    parameters = sum(p.numel() for p in network.parameters())
    macs = None
    if job.count and entry.refinement is None:  # a filter's work is not that of convolutions
        try:
            macs = multiply_adds(entry.make(job.classes), size, job.mode, job.tile, job.overlap)
        except (NotImplementedError, RuntimeError, ValueError):
            macs = None  # an operator that cannot be counted: the table says nothing rather than a guess
    run = labelling(
        place(network, placement, job.prepared), placement, job.mode, job.prepared, job.tile, job.overlap,
        find_refinement(entry.refinement) if entry.refinement else None,
    )  # fmt: skip
    x = _image(size, entry.refinement is not None).to(placement.device)
    cuda = placement.device.type == "cuda"
    _say({"state": "ready", "parameters": parameters, "macs": macs, "device": _device(placement.device)})
    for number in range(1 + job.repeats):
        began = time.perf_counter()
        labels = run(x)
        if cuda:
            torch.cuda.synchronize()
        if tuple(labels.shape) != size:
            raise AssertionError(f"labels of shape {tuple(labels.shape)}")
        _say({"warm": number > 0, "seconds": time.perf_counter() - began})
    peak = torch.cuda.max_memory_allocated() if cuda else peak_rss_bytes()
    _say({"state": "done", "peak_bytes": peak})


def _image(size: tuple[int, int], real: bool) -> torch.Tensor:
    """Noise, whose values a network does not care about; for refinements, whose work they decide, a landscape."""
    if not real:
        return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    pixels = ProceduralWorld(size).read(Window(0, 0, *size)).astype(np.float32)
    return normalised(pixels, IMAGENET_MEAN, IMAGENET_STD)[None]


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


def main(arguments: list[str]) -> int:
    """Run the job; an error is a line too, so that the parent can say what happened."""
    try:
        measure(Job(**json.loads(arguments[0])))
    except Exception as error:
        text = " ".join(str(error).split())
        _say({"state": "failed", "error": f"{type(error).__name__}: {text[:300]}"})
        return 1
    return 0


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
