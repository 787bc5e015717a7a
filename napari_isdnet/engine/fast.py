"""Compilation of a prepared network, with a plain fallback: faster where the machine can, never an error."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from napari_isdnet.model.isdnet import ISDNet


def compiled(model: ISDNet) -> tuple[Callable[[Tensor], Tensor], str]:
    """``coarse_logits`` of a prepared network, compiled by TorchInductor, and a note that says what was done.

    On a GPU, calls of a shape that repeats replay a CUDA graph. Where there is no compiler (or it fails on the first
    call of a shape) the same function runs uncompiled; the answer is the same to rounding either way.
    """
    graph = torch.device(next(model.parameters()).device).type == "cuda"
    try:
        built = torch.compile(model.coarse_logits, dynamic=False, mode="reduce-overhead" if graph else None)
    except RuntimeError as error:  # a platform that torch cannot compile for
        return model.coarse_logits, f"not compiled: {_brief(error)}"
    state = _State(model, built)
    return state, "TorchInductor" + (", CUDA graphs" if graph else "")


class _State:
    """Calls the compiled function until it fails once, then the plain one for good."""

    def __init__(self, model: ISDNet, built: Callable[[Tensor], Tensor]) -> None:
        self.model, self.built, self.reason = model, built, ""

    def __call__(self, x: Tensor) -> Tensor:
        if not self.reason:
            try:
                # A graph's output lives in memory that the next call overwrites.
                return self.built(x).clone() if x.is_cuda else self.built(x)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                self.reason = _brief(error)
                warnings.warn(f"torch.compile does not work here ({self.reason}); going on without.", stacklevel=2)
        return self.model.coarse_logits(x)


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__
