"""Pictures of a result beside its image and truth, with a legend, as PNG files that any program shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from napari_isdnet.classes import ClassInfo
from napari_isdnet.engine.errors import ERROR_COLORS, ERROR_NAMES, WRONG, WRONG_AT_BOUNDARY, error_map
from napari_isdnet.engine.pictures import overview
from napari_isdnet.io.disk import disk_errors, replacing
from napari_isdnet.io.overlay import blend
from napari_isdnet.io.source import ImageSource
from napari_isdnet.window import Window

PANEL, GAP, LINE = 720, 12, 30
TOLERANCE = 3.0
Picture = npt.NDArray[np.uint8]


def write_pictures(
    image: ImageSource,
    truth: ImageSource | None,
    labels: ImageSource,
    classes: Sequence[ClassInfo],
    detail: Window,
    folder: Path,
) -> dict[str, Path]:
    """Write ``overview.png`` (the whole), ``detail.png`` (one region) and ``overlay.png``; returns name -> path.

    ``image`` is 8-bit RGB; without ``truth`` the panels of truth and errors are left out.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, region in (("overview", Window.whole(image.shape)), ("detail", detail)):
        paths[name] = _save(sheet(_panels(image, truth, labels, classes, region, PANEL), classes), folder, name)
    whole = dict(_panels(image, None, labels, classes, Window.whole(image.shape), 2 * PANEL))
    paths["overlay"] = _save(whole["Prediction"], folder, "overlay")
    return paths


def _panels(
    image: ImageSource,
    truth: ImageSource | None,
    labels: ImageSource,
    classes: Sequence[ClassInfo],
    region: Window,
    side: int,
) -> list[tuple[str, Picture]]:
    """(title, RGB picture) of image, truth, prediction and errors; all of one size."""
    rgb = overview(image, region, side, labels=False)[..., :3].astype(np.uint8)
    found = overview(labels, region, side, labels=True)[..., 0].astype(np.uint8)
    panels = [("Image", rgb), ("Prediction", blend(rgb, found, classes))]
    if truth is not None:
        right = overview(truth, region, side, labels=True)[..., 0].astype(np.uint8)
        tolerance = max(1.0, TOLERANCE * found.shape[0] / region.height)
        panels.insert(1, ("Truth", blend(rgb, right, classes)))
        panels.append(("Errors", _errors(rgb, error_map(found, right, None, tolerance))))
    return panels


def _errors(rgb: Picture, codes: Picture) -> Picture:
    """Errors in colour over a pale grey picture."""
    grey = rgb.mean(axis=2, keepdims=True) * 0.5 + 120
    result = np.repeat(grey, 3, axis=2).astype(np.uint8)
    for code, color in ERROR_COLORS.items():
        result[codes == code] = color
    return result


def sheet(panels: Sequence[tuple[str, Picture]], classes: Sequence[ClassInfo]) -> Picture:
    """The panels in rows of two with their titles, and a legend of classes (and errors) below."""
    height, width = panels[0][1].shape[:2]
    rows = -(-len(panels) // 2)
    full = (2 * width + 3 * GAP, rows * (height + LINE) + GAP + 2 * LINE)
    canvas = Image.new("RGB", full, "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(18)
    for number, (title, picture) in enumerate(panels):
        row, column = divmod(number, 2)
        left, top = GAP + column * (width + GAP), row * (height + LINE)
        draw.text((left, top + 5), title, fill="black", font=font)
        canvas.paste(Image.fromarray(picture), (left, top + LINE))
    entries = [(info.name, info.color) for info in classes]
    bottom = rows * (height + LINE) + GAP
    _legend(draw, font, bottom, entries, full[0])
    if any(title == "Errors" for title, _ in panels):
        errors = [(ERROR_NAMES[code], ERROR_COLORS[code]) for code in (WRONG, WRONG_AT_BOUNDARY)]
        _legend(draw, font, bottom + LINE, errors, full[0])
    return np.asarray(canvas)


def _legend(draw: Any, font: Any, top: int, entries: Sequence[tuple[str, tuple[int, int, int]]], width: int) -> None:
    left = GAP
    for name, color in entries:
        if left > width - 160:  # many classes: what does not fit is in the report
            return
        draw.rectangle((left, top + 4, left + 18, top + 22), fill=color)
        draw.text((left + 26, top + 3), name, fill="black", font=font)
        left += 44 + int(draw.textlength(name, font=font))


def _save(picture: Picture, folder: Path, name: str) -> Path:
    path = folder / f"{name}.png"
    with replacing(path, overwrite=True) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", optimize=True)
    return path
