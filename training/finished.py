"""What a training run leaves in its folder, and whether it has come to its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_isdnet_training.config import Recipe, RunConfig
from napari_isdnet_training.identity import fixed, up_to_date
from napari_isdnet_training.state import RunState, read_state

from napari_isdnet.exceptions import InputError
from napari_isdnet.model.checkpoint import read_header

CHECKPOINT = "last.ckpt.safetensors"
MODELS = ("model.safetensors", "best.safetensors")
"""The last weights of a run, and those of its best validation."""


@dataclass(frozen=True)
class FitResult:
    """Where the models are (None where there is none), what the last validation said, and which weights it began with.

    ``start`` names what of a ``model.init`` file was left out.
    """

    model: Path | None
    best: Path | None
    steps: int
    figures: dict[str, Any] = field(default_factory=dict)
    start: str = "from scratch"


def finished(recipe: Recipe, output: Path) -> FitResult | None:
    """What a run of this recipe left that came to its end, its model too; None where there is still something to do."""
    checkpoint, (model, best) = output / CHECKPOINT, (output / name for name in MODELS)
    if not (checkpoint.is_file() and model.is_file()):
        return None
    state, options = read_state(checkpoint), recipe.run
    late = options.max_seconds is not None and state.seconds > options.max_seconds
    due = options.validate_every and state.validated < state.step
    if due or not (late or state.step >= options.steps or stale(options, state)):
        return None
    if fixed(up_to_date(state.recipe)) != fixed(recipe.to_dict()):
        return None  # the run itself says what differs
    try:
        lineage = read_header(model).lineage
    except InputError:  # damaged: it is written again
        return None
    if lineage.get("step") != state.step:
        return None
    start = str(lineage.get("backbone", "from scratch"))
    return FitResult(model, best if best.is_file() else None, state.step, state.figures, start)


def stale(options: RunConfig, state: RunState) -> bool:
    """True where validation has not improved for so long that the run ends."""
    patience = options.early_stop * options.validate_every
    return bool(patience and state.best >= 0 and state.step - state.best_step >= patience)
