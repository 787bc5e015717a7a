"""What differs between two jobs, in words. Without torch: the docks ask while they open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_isdnet.engine.ledger import JobDiffersError
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.intensity import IntensityPolicy

if TYPE_CHECKING:
    from napari_isdnet.io.source import ImageSource
    from napari_isdnet.model.header import ModelHeader


def job_differences(stored: Mapping[str, Any], wanted: Mapping[str, Any], about: Mapping[str, Any]) -> list[str]:
    """In words, what the ``stored`` header of a job has otherwise than ``wanted``, the weightiest first.

    Only what both say is compared. ``about`` is what was noted with the stored job; ``wanted`` may hold the name of
    its model as ``model_name``.
    """
    # A job of one orientation does not say so.
    stored, wanted = {"orientations": 1, **stored}, {"orientations": 1, **wanted}
    name, new = about.get("model"), wanted.get("model_name")
    other_model = bool(name and new) and name != new and stored.get("model") != wanted.get("model", "")
    keys = [key for key in _ORDER if key in stored and key in wanted and stored[key] != wanted[key]]
    if other_model and "model" not in keys:
        keys.insert(0, "model")
    if "context" in keys:  # the sizes of windows and cores differ with it
        keys = [key for key in keys if key not in ("window", "core")]
    words = [_difference(key, stored.get(key), wanted.get(key)) for key in keys if key != "model"]
    if "model" in keys:
        now = "" if new is None else f" (now '{new}')"
        words.insert(0, f"the model '{name}'{now}" if other_model else f"other weights of the model{now}")
    return words


def shown_otherwise(source: ImageSource, policy: IntensityPolicy, header: ModelHeader) -> str | None:
    """A sentence where a model was tuned on other colours than ``policy`` makes of ``source``; None where it was not.

    Contrast that was chosen by hand belongs to the model: percentiles of another image would show it other colours.
    """
    if not header.contrast_options:
        return None
    chosen = header.contrast or {}
    try:
        alike = IntensityPolicy.from_source(source, chosen.get("asked", policy.contrast), chosen.get("channels"))
    except InputError:  # an image without such channels
        return None
    if replace(alike, contrast=policy.contrast) == policy:
        return None
    return (
        f"The model was tuned on images shown with {header.contrast_options}, this one is shown with other colours;"
        f" {header.contrast_options} shows it alike."
    )


def in_words(error: JobDiffersError, folder: Path, model_name: str) -> JobDiffersError:
    """The refusal of a ledger with what differs in words; as it is where only what no one chooses does."""
    words = job_differences(error.stored, {**error.wanted, "model_name": model_name}, error.about)
    if not words:
        return error
    sentence = (
        f"The job {folder} was begun with {'; '.join(words)}: use --overwrite or --no-resume to throw its work away and"
        " start again, or choose another --output folder."
    )
    return JobDiffersError(sentence, error.stored, error.wanted, error.about)


_ORDER = (
    "model", "image", "roi", "context", "probabilities", "uncertainty", "intensity", "scale", "orientations", "window",
    "core", "skip_bad_tiles", "device", "precision", "versions",
)  # fmt: skip
_CONTEXTS = {"whole": "the whole image as context", "window": "window by window"}


def _difference(key: str, old: Any, new: Any) -> str:
    """One difference as it stands after 'was begun with'."""
    if key == "image":
        paths = [item.get("path") if isinstance(item, Mapping) else None for item in (old, new)]
        if paths == [None, None]:  # of pixels in memory there is only a hash
            return "another image of this name, or this one before it changed"
        if paths[0] == paths[1]:
            return "the image as it was before it changed"
        was, now = (path or "pixels in memory" for path in paths)
        return f"another image ({was}, now {now})"
    if key == "roi":
        return f"{_region(old)} as region (now {_region(new)})"
    if key == "context":
        return f"{_CONTEXTS.get(old, old)} (now {_CONTEXTS.get(new, new)})"
    if key in ("probabilities", "uncertainty"):
        return f"{'' if old else 'no '}{key} (now {'with' if new else 'without'})"
    if key == "orientations":
        return f"{old} orientation{'s' if old != 1 else ''} (now {new})"
    if key == "skip_bad_tiles":
        return "unreadable tiles skipped (now not)" if old else "unreadable tiles not skipped (now they are)"
    if key == "intensity":
        return "another contrast or choice of channels"
    if key == "versions":
        return f"another version ({_versions(old)}, now {_versions(new)})"
    names = {"window": "windows", "core": "cores"}
    unit = " pixels" if key in names else ""
    return f"{names.get(key, f'the {key}')} of {old}{unit} (now {new}{unit})"


def _region(roi: Any) -> str:
    if roi is None:
        return "the whole image"
    row, column, height, width = roi
    return f"rows {row:,} to {row + height - 1:,} and columns {column:,} to {column + width - 1:,}"


def _versions(versions: Any) -> str:
    return " and ".join(f"{name} {number}" for name, number in dict(versions).items())
