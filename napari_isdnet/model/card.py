"""A model's card: what it is, where it comes from and how good it was, as Markdown; and one file that carries it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from napari_isdnet.exceptions import InputError
from napari_isdnet.model.checkpoint import SUFFIX, read_tensors, write_tensors
from napari_isdnet.model.header import ModelHeader

CARD = "card"
"""Key of a model file's metadata that holds the card."""


def model_card(header: ModelHeader) -> str:
    """The card of a model, from its header alone."""
    return "\n".join(_lines(header)) + "\n"


def export_model(source: str | Path, target: str | Path) -> Path:
    """Copy a model to ``target`` (``.safetensors``), bit for bit, with its card inside and the file's name as its own.

    The file appears whole or not at all. Raises :class:`InputError` for another suffix.
    """
    path = Path(os.path.expanduser(target))
    if path.suffix != SUFFIX:
        raise InputError(f"A model file must be named *{SUFFIX}, got '{path.name}'.")
    header, tensors = read_tensors(source)
    header = replace(header, name=path.stem)
    write_tensors(tensors, path, header, {CARD: model_card(header)})
    return path


def _lines(header: ModelHeader) -> Iterator[str]:
    yield f"# {header.name}"
    yield ""
    yield f"{(header.description or 'A segmentation network').rstrip('.')}."
    yield ""
    size = f"{header.pixel_size:g} m" if header.pixel_size else "not stated"
    yield f"- Network: ISDNet, {header.flavour} flavour, deep branch {header.config.deep}"
    yield f"- Pixel size: {size}; windows of {header.window} pixels"
    if header.contrast_options:
        yield f"- Images were shown to it with {header.contrast_options}"
    yield f"- Licence: {header.licence}"
    yield f"- Made with napari-isdnet {header.version}"
    yield ""
    yield "## Classes"
    yield ""
    yield from (f"{number}. {item.name} ({item.hex})" for number, item in enumerate(header.classes))
    if header.lineage:
        yield from ("", "## Where it comes from", "")
        yield from _lineage(header.lineage)
    figures = list(_figures(header.figures))
    if figures:
        yield from ("", "## How good it was", "", *figures)
    yield from (
        "",
        "## How to use it",
        "",
        f"    napari-isdnet segment IMAGE --output DIR --model {header.name}{SUFFIX}",
    )


def _lineage(lineage: Mapping[str, Any]) -> Iterator[str]:
    parent, ancestors = lineage.get("parent"), lineage.get("ancestors") or []
    if isinstance(parent, Mapping):
        yield f"- Parent: {parent.get('name')} (SHA-256 {str(parent.get('hash', ''))[:12]})"
        names = [str(item.get("name")) for item in ancestors[1:] if isinstance(item, Mapping)]
        if names:
            yield f"- Before that: {', '.join(names)}"
    strokes = lineage.get("annotations")
    if isinstance(strokes, Mapping):
        pixels = ", ".join(f"{name} {count:,}" for name, count in dict(strokes.get("pixels", {})).items())
        yield f"- Annotation: journal entry {strokes.get('position')}; pixels: {pixels}"
    for key, value in lineage.items():
        if key not in ("parent", "ancestors", "annotations") and isinstance(value, str | int | float):
            yield f"- {key.replace('_', ' ').capitalize()}: {value}"


def _judged(split: str, figures: Mapping[str, Any]) -> Iterator[str]:
    """What a validation of a training run said, by class."""
    for key, name in (("miou", "mIoU"), ("accuracy", "Accuracy")):
        if isinstance(figures.get(key), int | float):
            yield f"- {name} ({split}): {figures[key]:.3f}"
    classes = figures.get("classes")
    known = [n for n, one in classes.items() if isinstance(one, Mapping)] if isinstance(classes, Mapping) else []
    if known:
        columns = ("iou", "f1", "precision", "recall")
        yield from ("", "| class | IoU | F1 | precision | recall |", "| --- | --- | --- | --- | --- |")
        for name in known:
            values = (classes[name].get(key) for key in columns)  # type: ignore[index]
            cells = (f"{v:.3f}" if isinstance(v, int | float) else "–" for v in values)
            yield f"| {name} | {' | '.join(cells)} |"


def _figures(figures: Mapping[str, Any]) -> Iterator[str]:
    for split in ("validation", "test"):
        if isinstance(figures.get(split), Mapping):
            yield from _judged(split, figures[split])
    before, after = figures.get("held_out_before"), figures.get("held_out_after")
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        yield "| held-out strokes | before | after |"
        yield "| --- | --- | --- |"
        for key in dict.fromkeys((*before, *after)):
            cells = (f"{side[key]:.3f}" if key in side else "–" for side in (before, after))
            name = "mIoU" if key == "miou" else key.removeprefix("iou_")
            yield f"| {name} | {' | '.join(cells)} |"
    for key, value in figures.items():
        if isinstance(value, int | float):
            yield f"- {key}: {value:.4g}"
