"""One training run of a benchmark: the recipe with a network, a budget and a seed of its own."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_isdnet_training.config import Recipe

from napari_isdnet.progress import Clock, Progress


@dataclass(frozen=True)
class Trained:
    """Figures on the validation split (whole scenes) after the last step, and the seconds this call took."""

    figures: dict[str, Any]
    seconds: float


def variant(recipe: Recipe, steps: int, seed: int, network: str, options: Mapping[str, Any]) -> Recipe:
    """The recipe for one run: validated once, after its last step; everything that is not named stays."""
    run = recipe.run.model_copy(update={"steps": steps, "validate_every": steps})
    model = recipe.model.model_copy(update={"name": network, "options": dict(options), "init": None})
    return recipe.model_copy(update={"seed": seed, "run": run, "model": model})


def run_folder(runs: Path, recipe: Recipe) -> Path:
    """A folder that depends on everything that decides the run, so that it is resumed by it alone."""
    return runs / f"{recipe.model.name}-{recipe.seed}-{digest(_facts(recipe))}"


def setting(recipe: Recipe, **more: Any) -> str:
    """A short text that differs where anything but the steps and the seed does, which are columns of a table.

    Rows of another setting (recipe, data, ``--set``, or one of ``more``) are no rows of the same benchmark.
    """
    facts = _facts(variant(recipe, 1, 0, recipe.model.name, recipe.model.options))
    return digest({"recipe": facts, **more})


def digest(facts: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that stand for facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _facts(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude_defaults=True)  # a setting added later changes nothing


def train(recipe: Recipe, runs: Path, clock: Clock, title: str) -> Generator[Progress, None, Trained]:
    """Train in a folder of ``runs``, resuming what was cut off; ``clock`` counts runs, this one by its steps."""
    from napari_isdnet_training.fit import fit

    began, before, resumed = time.monotonic(), clock.done, True
    steps = fit(recipe, run_folder(runs, recipe))
    try:
        while True:
            try:
                step = next(steps)
            except StopIteration as stop:
                return Trained(stop.value.figures, time.monotonic() - began)
            stage = f"{title}: {step.stage} {step.fraction:.0%}"
            yield clock.reach(before + step.fraction, stage, step.figures, resumed=resumed)
            resumed = False
    finally:
        steps.close()
