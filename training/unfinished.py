"""What an unfinished fine-tuning has done so far, read from its checkpoint's header (no weights, no torch)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEY = "napari_isdnet_training"
STATE = "state.safetensors"


@dataclass(frozen=True)
class Unfinished:
    """A run that was cut off: steps done and asked for, the step whose weights were taken, and what judged them.

    ``refused``: it was not cut off, but came to its end without weights that were taken.
    """

    step: int
    steps: int
    best_step: int
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    refused: bool = False


def checkpoint_folder(output: Path) -> Path:
    """Where the unfinished run of a model file lies."""
    return output.with_suffix(".ckpt")


def unfinished(output: Path) -> Unfinished | None:
    """The run of ``output`` that was cut off; None where there is none or its checkpoint is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(checkpoint_folder(output) / STATE), framework="numpy") as file:
            facts: dict[str, Any] = json.loads((file.metadata() or {})[KEY])
        figures = facts.get("figures", {})
        return Unfinished(
            step=int(facts["step"]),
            steps=int(facts["recipe"]["steps"]),
            best_step=int(facts["best_step"]),
            before=figures.get("before", {}),
            after=figures.get("after", {}),
            refused=bool(facts.get("refused", False)),
        )
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def so_far(output: Path) -> dict[str, Any]:
    """What a run of ``output`` that was cut off leaves, in the words of a finished one's result."""
    state = unfinished(output)
    facts: dict[str, Any] = {"model": str(output) if output.is_file() else None}
    if state is not None:
        facts |= {"steps": state.step, "of": state.steps, "best_step": state.best_step}
        facts |= {"held_out_before": dict(state.before), "held_out_after": dict(state.after)}
    return facts
