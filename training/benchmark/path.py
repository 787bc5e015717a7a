"""What the inference path gains: the plain forward against the prepared one, alternating in one process."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from napari_isdnet_training.benchmark.inference import best_class
from napari_isdnet_training.sources import colors_of, normalised
from torch import Tensor

from napari_isdnet.engine.device import choose, out_of_memory, prepare
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.open import open_source
from napari_isdnet.model.header import ModelHeader
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.model.laplacian import LaplacianPyramid
from napari_isdnet.progress import Clock, Progress
from napari_isdnet.window import Window

PATH_COLUMNS = ("variant", "height", "width", "p50_ms", "ratio_plain", "ratio_eager", "agreement", "note", "device")


class ConvolvedPyramid(LaplacianPyramid):
    """The pyramid as the published code computes it: 25-tap depthwise convolutions on every pixel."""

    def _filter(self, x: Tensor, gain: float) -> Tensor:
        row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=x.dtype, device=x.device)
        kernel = (torch.outer(row, row) * (gain / 256)).expand(x.shape[1], 1, 5, 5).contiguous()
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=x.shape[1])

    def down(self, x: Tensor) -> Tensor:
        """See the base class."""
        return self._filter(x, 1.0)[:, :, ::2, ::2]

    def up(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """See the base class."""
        spread = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
        spread[:, :, ::2, ::2] = x
        return self._filter(spread, 4.0)[:, :, : size[0], : size[1]]


def compiled(model: ISDNet) -> tuple[Callable[[Tensor], Tensor], str]:
    """``coarse_logits`` of a prepared network, compiled by TorchInductor, and a note that says what was done.

    On a GPU, calls of a shape that repeats replay a CUDA graph. Where there is no compiler (or it fails on the first
    call of a shape) the same function runs uncompiled; the answer is the same to rounding either way.
    """
    return _compile(model.coarse_logits, next(model.parameters()).is_cuda)


def compiled_labels(model: ISDNet, tune: bool = False) -> tuple[Callable[[Tensor], Tensor], str]:
    """As :func:`compiled`, from the image (1, 3, H, W) to its classes (H, W) uint8.

    Enlarging the logits and choosing the best class become one kernel, which never writes full-size logits: for a GPU.
    ``tune`` tries several kernels for every layer, which takes minutes once.
    """

    def labels(x: Tensor) -> Tensor:
        fine = F.interpolate(model.coarse_logits(x), size=x.shape[2:], mode="bilinear", align_corners=False)
        return fine[0].argmax(0).to(torch.uint8)

    return _compile(labels, next(model.parameters()).is_cuda, tune)


def _compile(
    function: Callable[[Tensor], Tensor], graph: bool, tune: bool = False
) -> tuple[Callable[[Tensor], Tensor], str]:
    mode = "reduce-overhead" if graph else None
    if tune:
        mode = "max-autotune" if graph else "max-autotune-no-cudagraphs"
    try:
        built = torch.compile(function, dynamic=False, mode=mode)
    except RuntimeError as error:  # a platform that torch cannot compile for
        return function, f"not compiled: {_brief(error)}"
    note = "TorchInductor" + (", kernels tuned" if tune else "") + (", CUDA graphs" if graph else "")
    return _State(function, built), note


class _State:
    """Calls the compiled function until it fails once, then the plain one for good."""

    def __init__(self, plain: Callable[[Tensor], Tensor], built: Callable[[Tensor], Tensor]) -> None:
        self.plain, self.built, self.reason = plain, built, ""

    def __call__(self, x: Tensor) -> Tensor:
        if not self.reason:
            try:
                # A graph's output lives in memory that the next call overwrites.
                return self.built(x).clone() if x.is_cuda else self.built(x)
            except Exception as error:
                if out_of_memory(error):
                    raise
                self.reason = _brief(error)
                warnings.warn(f"torch.compile does not work here ({self.reason}); going on without.", stacklevel=2)
        return self.plain(x)


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__


def read_normalised(path: Path, header: ModelHeader, size: tuple[int, int]) -> Tensor:
    """The upper left ``size`` (rows, columns; less where the image is smaller) as (1, 3, h, w) float32, normalised."""
    with closing(open_source(path)) as source:
        window = Window(0, 0, *size).clipped(source.shape)
        pixels, _ = colors_of(IntensityPolicy.from_source(source), source.read(window), header.mean)
    return normalised(pixels, header.mean, header.std)[None]


def variants(
    model: ISDNet, device: str, compile_too: bool, tune: bool = False
) -> dict[str, tuple[Callable[[Tensor], Tensor], str]]:
    """Functions from a normalised image (1, 3, H, W) to labels, and a note each; ``plain`` is the yardstick."""

    def full(net: ISDNet) -> Callable[[Tensor], Tensor]:
        return lambda x: net(x).logits[0].argmax(0).to(torch.uint8)

    def fused(net: ISDNet) -> Callable[[Tensor], Tensor]:
        return lambda x: best_class(net.coarse_logits(x), (x.shape[2], x.shape[3]))

    target = choose(device, "float32").device
    eager = copy.deepcopy(model).eval().to(target)
    plain = copy.deepcopy(eager)
    plain.pyramid = ConvolvedPyramid(model.config.residual_levels)
    found: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
        "float32 plain": (full(plain), "float32 eager, pyramid by convolutions as published"),
        "float32 eager": (full(eager), "float32 eager, this package's pyramid"),
        "float32 prepared": (fused(prepare(model, choose(device, "float32"))), "folded, channels last, fused labels"),
        "bfloat16 prepared": (fused(prepare(model, choose(device, "bfloat16"))), "the same in bfloat16"),
    }
    if compile_too:
        ready, note = compiled(prepare(model, choose(device, "bfloat16")))
        found["bfloat16 compiled"] = (lambda x: best_class(ready(x), (x.shape[2], x.shape[3])), note)
        if target.type == "cuda":
            found["bfloat16 compiled to labels"] = compiled_labels(prepare(model, choose(device, "bfloat16")))
    if tune:
        found["bfloat16 tuned to labels"] = compiled_labels(prepare(model, choose(device, "bfloat16")), tune=True)
    return found


@torch.inference_mode()
def measure_path(
    model: ISDNet, x: Tensor, *, device: str = "auto", rounds: int = 5, compile_too: bool = False, tune: bool = False
) -> Generator[Progress, None, list[dict[str, Any]]]:
    """Time every variant on one image in alternating rounds; yields after each, returns rows of :data:`PATH_COLUMNS`.

    ``ratio_plain`` and ``ratio_eager`` are medians over the rounds of the time of the two float32 forwards over that
    of the row; ``agreement`` is the share of pixels whose class is that of ``float32 eager``.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    placement = choose(device, "float32")
    x = x.to(placement.device)
    found = variants(model, device, compile_too, tune)
    times: dict[str, list[float]] = {name: [] for name in found}
    clock = Clock(len(found) * (rounds + 1))
    labels: dict[str, Tensor] = {}
    for number in range(rounds + 1):
        for name, (run, _) in found.items():
            began = time.perf_counter()
            result = run(x)
            if x.is_cuda:
                torch.cuda.synchronize()
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - began)
            else:
                labels[name] = result.cpu()
            yield clock.step(1, name)
    name_of_device = torch.cuda.get_device_name() if x.is_cuda else f"cpu, {torch.get_num_threads()} threads"
    truth = labels["float32 eager"]
    rows = []
    for name, (_, note) in found.items():
        own = np.array(times[name])
        row: dict[str, Any] = {"variant": name, "height": x.shape[2], "width": x.shape[3], "note": note}
        row |= {"p50_ms": round(float(np.median(own)) * 1e3, 1), "device": name_of_device}
        for key, base in (("ratio_plain", "float32 plain"), ("ratio_eager", "float32 eager")):
            row[key] = round(float(np.median(np.array(times[base]) / own)), 3)
        row["agreement"] = round(float((labels[name] == truth).float().mean()), 5)
        rows.append(row)
    return rows
