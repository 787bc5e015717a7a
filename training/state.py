"""Checkpoints that resume exactly: one safetensors file with weights, averages and optimiser state; no pickle."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from napari_isdnet_training.unfinished import KEY
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import replacing


@dataclass
class RunState:
    """What a checkpoint says besides tensors: steps done, best validation, recipe.

    ``validated`` is the last step whose validation was done and ``figures`` what it said; ``baseline`` is the score
    before the first step. ``data`` is a digest of what it was trained on, '' where nobody wrote it down.
    ``refused``: it is done, and nothing of it was taken.
    """

    step: int = 0
    validated: int = 0
    best: float = -1.0
    best_step: int = 0
    baseline: float | None = None
    seconds: float = 0.0
    data: str = ""
    refused: bool = False
    figures: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)


class Average:
    """Exponential moving average of weights and buffers; ``decay`` grows from 0 as (1 + n) / (10 + n) to its value."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.values = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move a step towards ``module``."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        own, new = [], []
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                own.append(self.values[key])
                new.append(value)
            else:
                self.values[key].copy_(value)
        torch._foreach_lerp_(own, new, 1 - decay)  # a few hundred tensors at once: one by one, a GPU waits for Python


def save_state(
    path: Path, state: RunState, module: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None
) -> None:
    """Write everything that the next step depends on; the file appears whole or not at all.

    Raises :class:`InputError` where the disk is full; the file that was there stays.
    """
    tensors = {f"model.{k}": v for k, v in module.state_dict().items()}
    numbers: dict[str, Any] = {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            elif value is not None:
                numbers[f"{index}.{name}"] = value
    if average is not None:
        tensors.update({f"average.{k}": v for k, v in average.values.items()})
    facts = {**vars(state), "numbers": numbers, "updates": average.updates if average else 0}
    whole = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    with replacing(path, overwrite=True) as temporary:
        _write(whole, temporary, {KEY: json.dumps(facts)})


def _write(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """``save_file``, whose errors of the system's are such again: it says their number in words only."""
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def read_state(path: Path) -> RunState:
    """What a checkpoint says, without its tensors: whose run it is, before anything of it is put in place.

    Raises :class:`InputError` where it is damaged.
    """
    with _resumed(path), safe_open(str(path), framework="pt") as file:
        return _state(json.loads((file.metadata() or {})[KEY]))


def load_state(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None) -> RunState:
    """Put a checkpoint's tensors back in place; :class:`InputError` where it is damaged or of another network."""
    with _resumed(path):
        with safe_open(str(path), framework="pt") as file:
            facts = json.loads((file.metadata() or {})[KEY])
            # Copies: what safetensors gives is the file itself, and Windows replaces no file while any of it is in use.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (no mapping)
        module.load_state_dict(_part(tensors, "model."))
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": _optimizer_state(tensors, facts["numbers"]), "param_groups": groups})
        if average is not None:
            average.values, average.updates = _part(tensors, "average."), int(facts["updates"])
            average.values = {k: v.to(module.state_dict()[k].device) for k, v in average.values.items()}
        return _state(facts)


@contextmanager
def _resumed(path: Path) -> Iterator[None]:
    """Turn whatever a damaged checkpoint raises into one sentence."""
    try:
        yield
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:160]
        raise InputError(f"Checkpoint {path} cannot be resumed ({reason}); delete it or use --no-resume.") from None


def _state(facts: dict[str, Any]) -> RunState:
    return RunState(**{k: facts[k] for k in RunState.__dataclass_fields__ if k in facts})


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _optimizer_state(tensors: dict[str, Tensor], numbers: dict[str, Any]) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {}
    items: Iterable[tuple[str, Any]] = (*_part(tensors, "optimizer.").items(), *numbers.items())
    for key, value in items:
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    return state
