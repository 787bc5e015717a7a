"""What the Fine-tune dock says: what guards the weights, how a judgement went, how a run ended. No Qt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from napari_isdnet_training.presets import BACKBONE, preset_of
from napari_isdnet_training.unfinished import Unfinished

from napari_isdnet.annotation.naming import in_words
from napari_isdnet.annotation.project import ModelEntry
from napari_isdnet.classes import known_as
from napari_isdnet.widgets._finetune_job import TuneSettings

Figures = Mapping[str, float]


def class_changes(painted: Sequence[str], taught: Sequence[str], called: Mapping[str, str]) -> list[str]:
    """Which classes of an annotation are new to a model of the ``taught`` ones, and which of those it drops.

    They are matched as training matches them; ``called`` says which of the taught ones have another name now. Nothing
    is said while there is no annotation.
    """
    old = [called.get(name, name) for name in taught]
    known = known_as(painted, old)
    fresh = [own for own, name in zip(painted, known, strict=True) if name not in old]
    gone = sorted(name for name in old if name and name not in known)
    said = in_words(called) if painted else []
    if fresh:
        said.append(f"new: {', '.join(fresh)}")
    if painted and gone:
        said.append(f"not in the annotation, so dropped: {', '.join(gone)}")
    return said


def guards(settings: TuneSettings) -> str:
    """What keeps a run from making things worse."""
    preset = preset_of(settings.preset, settings.model)
    trained = "the last layers" if settings.preset == "quick" else "the whole network"
    if settings.model == BACKBONE and settings.preset == "quick":
        trained = "everything but the pretrained branches"
    parts = [f"Trains {trained}; half of the windows replay strokes of any age, so that early ones are not forgotten."]
    if settings.model != BACKBONE:
        parts[0] += " What is not painted is asked to stay as it is."
    if settings.spread:
        parts[0] += f" Thin strokes speak for superpixels of {settings.spread} pixels around them."
    if settings.held_out <= 0:
        return f"{parts[0]} Nothing is held out, so nothing can tell whether the model got worse."
    every = min(preset.validate_every, settings.steps)
    parts.append(
        f"Every {every} steps the held-out places judge, and training ends after {preset.patience} judgements"
        " in a row that are worse by more than chance."
    )
    parts.append(
        "The last weights are taken even if the held-out places got worse."
        if settings.allow_worse
        else "New weights are taken unless these places got worse by more than chance."
    )
    return " ".join(parts)


def judgement(step: int, figures: Figures, before: Figures, best: float | None) -> str:
    """One look at the held-out places, against the start and the best so far."""
    now = figures.get("miou")
    if now is None:
        return ""
    if step == 0:
        return f"Before: mIoU {now:.3f} on the held-out places."
    most = before.get("miou", 0.0) if best is None else best
    said = f"Step {step}: held-out mIoU {now:.3f}"
    if not figures.get("taken"):
        return f"{said}, worse than {most:.3f} by more than chance: the weights kept before stay."
    if now > most:
        return f"{said}, better than {most:.3f}: taken."
    return (
        f"{said}, the same as before: taken."
        if now == most
        else (f"{said}, below {most:.3f} by no more than chance: taken.")
    )


def ending(entry: ModelEntry | None, result: Mapping[str, Any], stopped: bool) -> str:
    """How a run ended."""
    step = result.get("steps", 0)
    scores = _scores(result)
    if stopped:
        of = result.get("of")
        at = f"Stopped at step {step} of {of}." if of else "Stopped."
        if entry is None:
            return f"{at} No weights were taken yet, so the model stays as it was. Resume goes on."
        return f"{at} The last weights taken are kept as {entry.id}{scores}. Resume goes on."
    reason = result.get("reason")
    if entry is None:
        return f"The model stays as it was: {reason or 'no weights were as good as before'}."
    kept = result.get("best_step", step)
    early = "" if kept in (None, step) else f" of {step}, since the held-out places got worse then"
    words = f"{entry.id} is the model in use now: step {kept}{early}{scores}."
    return f"{words} Not judged: {reason}." if reason else words


def _scores(result: Mapping[str, Any]) -> str:
    before, after = result.get("held_out_before") or {}, result.get("held_out_after") or {}
    if "miou" not in before or "miou" not in after:
        return ""
    return f", held-out mIoU {before['miou']:.3f} → {after['miou']:.3f}"


def left_over(state: Unfinished) -> str:
    """What a run that was cut off has done."""
    return (
        f"A run was cut off after {state.step} of {state.steps} steps. Resume goes on with the annotations it began"
        " with, as if it had never stopped; Fine-tune starts anew with those of now."
    )


def duration(seconds: float) -> str:
    """A forecast as people say it."""
    if seconds < 90:
        return f"about {max(5, round(seconds / 5) * 5)} s"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"
