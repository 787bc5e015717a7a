"""Compilation of a prepared network, with a plain fallback: faster where the machine can, never an error."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_isdnet.engine.device import out_of_memory
from napari_isdnet.model.isdnet import ISDNet


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
