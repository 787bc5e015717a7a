"""What the Errors dock knows, without Qt: maps as sources, the error pyramid, figures as rows of text."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.classes import ClassInfo
from napari_isdnet.engine.boundary import boundary_halo
from napari_isdnet.engine.errors import ERROR_COLORS, ERROR_NAMES, NOT_EVALUATED, ErrorSource
from napari_isdnet.engine.evaluate import evaluate
from napari_isdnet.engine.evaluation import Evaluation
from napari_isdnet.engine.labels import open_labels
from napari_isdnet.engine.live import PredictionPyramid
from napari_isdnet.engine.live_errors import LiveErrors
from napari_isdnet.engine.report import write_report
from napari_isdnet.engine.report_html import percent
from napari_isdnet.engine.tiles import LivePyramid, TilePyramid
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.source import GeoReference, ImageSource, PixelSize
from napari_isdnet.progress import Progress
from napari_isdnet.widgets._image import levels_to_show
from napari_isdnet.widgets._lazy import pyramid_of
from napari_isdnet.widgets._segment_layers import CLASSES
from napari_isdnet.window import Window

CLASS_HEADER = ("Class", "IoU", "F1", "Precision", "Recall", "Boundary F1")
WORST_HEADER = ("Wrong", "Where (row, column)", "Mostly")


class PyramidLabels:
    """A lazy label layer as a source: windows are read (or computed) when asked for."""

    channels, nodata, alpha = 1, float(NOT_EVALUATED), None
    georeference: GeoReference | None = None

    def __init__(self, pyramid: LivePyramid, name: str, pixel_size: PixelSize | None = None) -> None:
        self._pyramid, self.name, self.pixel_size = pyramid, name, pixel_size
        self.levels = tuple(pyramid.shapes)
        self.shape = self.levels[0]
        self.dtype = pyramid.dtype

    def read(self, window: Window, level: int = 0) -> npt.NDArray[Any]:
        """``(height, width, 1)`` class indices."""
        return self._pyramid.read(level, window)[..., None]

    @property
    def live(self) -> PredictionPyramid | None:
        """The pyramid, where it is one that is being segmented."""
        return self._pyramid if isinstance(self._pyramid, PredictionPyramid) else None

    def known(self) -> PyramidLabels:
        """The same map without what is still to be segmented (255 there)."""
        return KnownLabels(self._pyramid, self.name, self.pixel_size) if self.live is not None else self

    def identity(self) -> Mapping[str, Any]:
        """Name and shape: a layer has no better one."""
        return {"layer": self.name, "shape": list(self.shape)}

    def close(self) -> None:
        """The layer's pyramid belongs to the layer."""


class KnownLabels(PyramidLabels):
    """A live map as far as it is known; reading it computes nothing."""

    def read(self, window: Window, level: int = 0) -> npt.NDArray[Any]:
        """``(height, width, 1)`` class indices, 255 where there is none yet."""
        assert self.live is not None
        return self.live.known(level, window)[..., None]


@dataclass(frozen=True)
class LabelMap:
    """A class map that was chosen: its source, and the classes where it names them."""

    source: ImageSource
    classes: tuple[ClassInfo, ...] | None = None
    owned: bool = False

    def close(self) -> None:
        """Release a file that was opened for this; a layer's data stay."""
        if self.owned:
            self.source.close()


def from_layer(layer: Any) -> LabelMap:
    """A Labels layer of this or another plugin; :class:`InputError` for one that is no plane of class indices."""
    if layer.ndim != 2:
        raise InputError(f"'{layer.name}' has {layer.ndim} axes; a class map has rows and columns: take one plane.")
    classes = layer.metadata.get(CLASSES)
    pyramid = pyramid_of(layer)
    if pyramid is not None:
        return LabelMap(PyramidLabels(pyramid, layer.name), classes)
    levels = list(layer.data) if layer.multiscale else [layer.data]
    return LabelMap(ArraySource(levels, layer.name, "yx"), classes)


def from_file(path: str) -> LabelMap:
    """A class map in any format that ``evaluate`` reads (slow: reads the header)."""
    source, classes = open_labels(Path(path))
    return LabelMap(source, classes, owned=True)


@dataclass(frozen=True)
class Question:
    """What is compared: ``class_index`` None for any class; ``tolerance`` in pixels, 0 leaves boundaries in."""

    class_index: int | None = None
    tolerance: float = 3.0
    region: Window | None = None


def error_pyramid(prediction: LabelMap, truth: LabelMap, question: Question) -> TilePyramid:
    """The lazy error map: red missed, blue false alarm, paler at boundaries of the truth.

    A map that is being segmented is compared as far as it is known, and the errors follow it.
    """
    tolerance = question.tolerance if question.tolerance > 0 else None
    live: dict[PredictionPyramid, int] = {}
    sources: list[ImageSource] = []
    for item, reach in ((prediction, 0), (truth, boundary_halo(question.tolerance))):
        source = item.source
        if isinstance(source, PyramidLabels):
            if source.live is not None:
                live[source.live] = max(reach, live.get(source.live, 0))
            source = source.known()
        sources.append(source)
    errors = ErrorSource(sources[0], sources[1], question.class_index, tolerance)
    if live:
        return LiveErrors(errors, live)
    return TilePyramid(
        levels_to_show(errors.levels), lambda level, window: errors.read(window, level)[..., 0], fill=NOT_EVALUATED
    )


def error_colors(opacity: float = 1.0) -> dict[int | None, tuple[float, float, float, float]]:
    """Colours of the codes; correct and not evaluated are clear."""
    clear = (0.0, 0.0, 0.0, 0.0)
    shown = {code: (r / 255, g / 255, b / 255, opacity) for code, (r, g, b) in ERROR_COLORS.items()}
    return {None: clear, 0: clear, NOT_EVALUATED: clear, **shown}


def error_features() -> Any:
    """What napari's status bar says of a code."""
    import pandas as pd

    names = {0: "correct", **ERROR_NAMES, NOT_EVALUATED: "not evaluated"}
    return pd.DataFrame({"index": list(names), "error": list(names.values())})


def compare(
    prediction: LabelMap, truth: LabelMap, question: Question
) -> Generator[Progress, None, tuple[Evaluation, Question]]:
    """The figures of a region, as a job; leaves one core to the window."""
    classes = prediction.classes or truth.classes
    result = yield from evaluate(
        prediction.source,
        truth.source,
        classes,
        roi=question.region,
        tolerance=question.tolerance if question.tolerance > 0 else 3.0,
        worst_count=50,
        workers=max(1, min(4, (os.cpu_count() or 2) - 1)),
    )
    return result, question


def report(
    result: Evaluation, prediction: LabelMap, truth: LabelMap, image: ImageSource | None, folder: Path
) -> Generator[Progress, None, Path]:
    """Write the report, as a job; returns the page's path."""
    yield Progress(0, 1, "Writing the report")
    fits = image is not None and image.shape == prediction.source.shape
    return write_report(result, prediction.source, truth.source, image if fits else None, folder)["report.html"]


def class_rows(result: Evaluation) -> list[tuple[str, tuple[str, ...]]]:
    """(colour, cells) per class that occurs, and the mean last (with no colour)."""
    rows = [
        (c.color, (c.name, *(percent(v) for v in (c.iou, c.f1, c.precision, c.recall, c.boundary_f1))))
        for c in result.per_class
        if c.present
    ]
    mean = ("Mean", percent(result.mean_iou), percent(result.mean_f1), "", "", percent(result.mean_boundary_f1))
    return [*rows, ("", mean)]


def confusion_shares(result: Evaluation) -> tuple[list[int], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Classes that occur, the share of each true class (rows) that was called each class (columns), and the pixels."""
    present = [c.index for c in result.per_class if c.present]
    counts = result.confusion.counts[np.ix_(present, present)]
    return present, counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), counts


def worst_rows(result: Evaluation) -> list[tuple[Window, tuple[str, str, str]]]:
    """(window, cells) of the worst windows, worst first."""
    rows = []
    for worst in result.worst:
        mostly = ", ".join(
            f"{result.classes[c.truth].name} → {result.classes[c.predicted].name}" for c in worst.confusions[:2]
        )
        where = f"{worst.window.row:,}, {worst.window.column:,}"
        rows.append((worst.window, (f"{100 * worst.share:.0f} %", where, mostly)))
    return rows


def summary(result: Evaluation) -> str:
    """The figures in one sentence, and what a reader must know of them."""
    text = f"mIoU {percent(result.mean_iou)} · accuracy {percent(result.accuracy)} · {result.region.area:,} pixels"
    return " ".join([text, *result.notes])


def named(result: Evaluation, prediction: str, truth: str) -> Evaluation:
    """The evaluation under the names that the user sees."""
    return replace(result, prediction=prediction, truth=truth)


def zoom_for(window: Window, scale: Sequence[float], canvas: Sequence[float]) -> float:
    """Canvas pixels per world unit at which ``window`` fills two thirds of the canvas."""
    height, width = window.height * abs(scale[-2]), window.width * abs(scale[-1])
    return 0.67 * min(canvas[-2] / max(height, 1e-12), canvas[-1] / max(width, 1e-12))
