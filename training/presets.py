"""What the presets of fine-tuning mean. Imports nothing heavy, so that a window can show them at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PresetName = Literal["quick", "thorough"]

HELD_OUT = 0.2
"""Share of the annotated regions that judges instead of teaching."""
BACKBONE = "backbone"
"""In place of a model: ImageNet weights in the backbone, everything else new."""
DEFAULT_WINDOW = 512
MAX_HELD_OUT = 24
SPREAD = 16
"""Side in pixels of the superpixels that thin strokes are taken to."""
SPREADS = (8, 16, 32, 64)
"""Those that a window offers."""
MOST_SPREAD = 128
REPLAY = 0.5
"""Share of windows drawn by stroke, uniformly over the strokes' age, so that the first ones are not forgotten."""


KEEP_WEIGHT = 1.0
"""Weight of what the model before says of unpainted pixels."""
BRANCH_SCALE = 0.1
"""Share of the learning rate at which both branches learn (``thorough``) of a backbone, or of a model that knows all
classes."""


@dataclass(frozen=True)
class Preset:
    """What a preset means. ``patience``: so many judgements in a row that are surely worse end the training.

    ``lr`` teaches new classes, ``adapt_lr`` a model that knows all classes: what it knows is worth more than what a few
    strokes say. Measured on an aerial scene, one half painted and the other judged: ten times as much made it worse.
    """

    steps: int
    batch: int
    lr: float
    adapt_lr: float
    validate_every: int
    patience: int


PRESETS: Mapping[str, Preset] = {
    "quick": Preset(steps=80, batch=2, lr=1e-3, adapt_lr=1e-4, validate_every=20, patience=3),
    "thorough": Preset(steps=400, batch=4, lr=3e-4, adapt_lr=1e-4, validate_every=40, patience=4),
}
FRESH: Mapping[str, Preset] = {
    "quick": Preset(steps=200, batch=2, lr=3e-3, adapt_lr=1e-4, validate_every=40, patience=4),
    "thorough": Preset(steps=600, batch=4, lr=2e-3, adapt_lr=1e-4, validate_every=50, patience=5),
}
"""From a bare backbone, whose heads and fusions have learnt nothing yet."""
FRESH_WINDOW = 256
FRESH_BRANCHES: Mapping[str, str] = {"shallow": "tf_efficientnet_lite0", "shallow_input": "rgb"}
"""The shallow branch of a bare backbone: a few strokes teach no branch from scratch, and ImageNet weights know images,
not residuals."""


def preset_of(name: str, model: str) -> Preset:
    """What a preset means for a model, or for :data:`BACKBONE`."""
    return (FRESH if model == BACKBONE else PRESETS)[name]
