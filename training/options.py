"""What a fine-tuning is asked for, and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_isdnet_training.presets import MOST_SPREAD, PRESETS, preset_of

from napari_isdnet.exceptions import InputError
from napari_isdnet.model.checkpoint import DEFAULT_MODEL


@dataclass(frozen=True, kw_only=True)
class FineTuneOptions:
    """Everything that decides the weights but image and annotations; InputError for what cannot be."""

    model: str
    preset: str
    steps: int
    batch: int
    lr: float
    adapt_lr: float
    validate_every: int
    patience: int
    seed: int
    device: str
    precision: str
    window: int | None
    spread: int
    contrast: Any
    channels: tuple[int, ...] | None
    allow_worse: bool

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise InputError(
                f"Fine-tuning needs at least one step of one window, got {self.steps} steps of {self.batch}."
            )
        if not 0 <= self.seed < 2**32:
            raise InputError(f"The seed must be 0 to {2**32 - 1}, got {self.seed}.")
        if self.window is not None and self.window < 64:
            raise InputError(f"A training window must have at least 64 pixels a side, got {self.window}.")
        if self.spread and not 4 <= self.spread <= MOST_SPREAD:
            raise InputError(
                f"Superpixels must measure 4 to {MOST_SPREAD} pixels a side, or 0 for none, got {self.spread}."
            )

    @classmethod
    def of(cls, model: str | None, preset: str, steps: int | None, batch: int | None, **others: Any) -> FineTuneOptions:
        """What a preset means for a model (None: the default one), with other ``steps`` and ``batch`` where given."""
        if preset not in PRESETS:
            raise InputError(f"The preset must be {' or '.join(PRESETS)}, got '{preset}'.")
        model = DEFAULT_MODEL if model is None else str(model)
        base = preset_of(preset, model)
        steps = base.steps if steps is None else steps
        return cls(
            model=model, preset=preset, steps=steps, batch=base.batch if batch is None else batch, lr=base.lr,
            adapt_lr=base.adapt_lr, validate_every=min(base.validate_every, max(1, steps)), patience=base.patience,
            **others,
        )  # fmt: skip


@dataclass(frozen=True)
class FineTuneResult:
    """What came out. ``model`` is None where no state was as good as the one before; ``reason`` then says why.

    ``before`` and ``after`` hold mIoU and IoU per class on the held-out regions (empty where there are none);
    ``best_step`` is the step whose weights were kept.
    """

    model: Path | None
    steps: int
    best_step: int
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    new_classes: tuple[str, ...] = ()
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "model": None if self.model is None else str(self.model),
            "steps": self.steps,
            "best_step": self.best_step,
            "held_out_before": dict(self.before),
            "held_out_after": dict(self.after),
            "new_classes": list(self.new_classes),
            "reason": self.reason,
        }
