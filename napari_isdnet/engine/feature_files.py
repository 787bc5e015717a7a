"""Feature maps as files: OME-Zarr in float16, a PNG to look at, and the attention as JSON."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from napari_isdnet.engine.device import choose
from napari_isdnet.engine.feature_info import MapInfo, chosen, strides_of
from napari_isdnet.engine.features import FeatureView
from napari_isdnet.engine.job import Context
from napari_isdnet.engine.rendering import Rendering, kinds_for, paint
from napari_isdnet.exceptions import AlreadyThere
from napari_isdnet.io.disk import make_folder, replacing, scratch_folder, write_atomic
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.source import ImageSource, PixelSize
from napari_isdnet.io.units import name_of
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.progress import Clock, Progress
from napari_isdnet.window import Grid, Window, region_of

PREVIEW = 2048
CHUNK = 128
_PREPARE = 0.5


def write_features(
    source: ImageSource,
    model: ISDNet,
    *,
    output: Path,
    roi: Window | None = None,
    layers: Sequence[str] = (),
    context: Context = "whole",
    device: str = "auto",
    precision: str = "auto",
    memory: float | None = None,
    contrast: Any = "auto",
    channels: Sequence[int] | None = None,
    overwrite: bool = False,
) -> Generator[Progress, None, dict[str, Any]]:
    """Write maps of an image to ``output``; a generator of progress.

    For each layer ``<stem>_<layer>.ome.zarr`` (channel, row, column; float16; placed on the image by scale and
    translation) and ``<stem>_<layer>.png`` (PCA to RGB, or the channels themselves where there are three, at most 2048
    cells a side); for all ``<stem>_attention.json``. ``roi`` is a rectangle of level-0 pixels; ``layers`` are names of
    maps, ``residuals`` for all H, by default all. Files that are there, which may be another image's, are replaced with
    ``overwrite`` only. Returns JSON-ready facts: ``outputs`` and ``layers``.
    """
    region = region_of(roi, source.shape)
    policy = IntensityPolicy.from_source(source, contrast, channels)
    placement = choose(device, precision)
    names = chosen(tuple(layers), tuple(strides_of(model)))
    attention = output / f"{source.name}_attention.json"
    targets = [attention, *(output / f"{source.name}_{n}.{end}" for n in names for end in ("ome.zarr", "png"))]
    there = next((path for path in targets if path.exists()), None)
    if there is not None and not overwrite:
        raise AlreadyThere.at(there)
    make_folder(output)
    with scratch_folder(output) as maps:
        view = FeatureView(source, model, policy, placement, context, memory=memory, folder=maps)
        with closing(view):
            for step in view.prepare():
                yield step.within(0, _PREPARE)
            outputs: dict[str, str] = {}
            clock = Clock(len(names))
            for name in names:
                for step in _write_map(view, name, region, output, outputs, clock):
                    yield replace(step.within(_PREPARE, 1 - _PREPARE), stage=name)
            write_atomic(attention, json.dumps(attention_facts(view, region), indent=1).encode())
            outputs["attention"] = str(attention)
            return {
                "outputs": outputs,
                "context": context,
                "device": str(placement.device),
                "precision": placement.precision,
                "layers": [view.info(name).to_dict() for name in names],
            }


def attention_facts(view: FeatureView, region: Window) -> dict[str, Any]:
    """Attention vectors and relation matrices as nested lists, of the whole image or of the window in the middle."""
    row, column = region.center
    found = view.attention(row, column)
    return {"context": view.context, **{name: np.round(v.astype(float), 6).tolist() for name, v in found.items()}}


def _write_map(
    view: FeatureView, name: str, region: Window, output: Path, outputs: dict[str, str], clock: Clock
) -> Generator[Progress, None, None]:
    import zarr

    info = view.info(name)
    cells = info.extent.covering(region)
    basis, rendering = view.basis(name), Rendering(kinds_for(info.channels)[0])
    step = -(-max(cells.shape) // PREVIEW)
    preview = np.zeros((-(-cells.height // step), -(-cells.width // step), 4), np.uint8)
    stem = f"{view.source.name}_{name}"
    with replacing(output / f"{stem}.ome.zarr", overwrite=True) as temporary:
        group = zarr.create_group(temporary, attributes=_attributes(info, stem, cells, view.source.pixel_size))
        array = group.create_array(
            "0", shape=(info.channels, *cells.shape), dtype="float16", dimension_names=("c", "y", "x"),
            chunks=(min(info.channels, 32), min(CHUNK, cells.height), min(CHUNK, cells.width)),
        )  # fmt: skip
        grid = Grid(cells.shape, (CHUNK, CHUNK))
        for part in grid:
            values = view.read(name, part.shifted(cells.row, cells.column))
            array[(slice(None), *part.slices)] = np.clip(values, -65504, 65504).astype(np.float16).transpose(2, 0, 1)
            # Every step-th cell of the whole map, wherever the part begins.
            rows = np.arange(-(-part.row // step), -(-part.bottom // step))
            columns = np.arange(-(-part.column // step), -(-part.right // step))
            picked = values[np.ix_(rows * step - part.row, columns * step - part.column)]
            preview[np.ix_(rows, columns)] = paint(picked, basis, rendering)
            yield clock.step(1 / len(grid), name)
    outputs[name] = str(output / f"{stem}.ome.zarr")
    with replacing(output / f"{stem}.png", overwrite=True) as temporary:
        Image.fromarray(preview).save(temporary, format="PNG")
    outputs[f"{name} preview"] = str(output / f"{stem}.png")


def _attributes(info: MapInfo, stem: str, cells: Window, pixel: PixelSize | None) -> dict[str, Any]:
    """OME-Zarr 0.5 metadata: where the cells lie, in the image's units (positions are cell centres)."""
    unit = name_of(pixel.unit) if pixel is not None else None
    size = pixel if pixel is not None and unit else PixelSize(1.0, 1.0, "")
    sides = (size.row, size.column)
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space"} | ({"unit": unit} if unit else {}) for axis in "yx"]
    scale = [side * s for side, s in zip(sides, info.extent.scale, strict=True)]
    corner = info.extent.translate(cells)
    offset = [start + side * t for start, side, t in zip(size.start, sides, corner, strict=True)]
    transforms = [
        {"type": "scale", "scale": [1.0, *scale]},
        {"type": "translation", "translation": [0.0, *offset]},
    ]
    dataset = {"path": "0", "coordinateTransformations": transforms}
    return {
        "ome": {"version": "0.5", "multiscales": [{"name": stem, "axes": axes, "datasets": [dataset]}]},
        "napari_isdnet": {"kind": "features", "cells": list(vars(cells).values()), **info.to_dict()},
    }
