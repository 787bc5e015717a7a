"""What the Errors dock knows: maps as sources, the error pyramid, figures as rows of text."""

from __future__ import annotations

import contextlib
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
from napari_isdnet.engine.worst import ClassWindow, WorstWindow
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.source import GeoReference, ImageSource, PixelSize
from napari_isdnet.io.store import LabelStore
from napari_isdnet.progress import Progress
from napari_isdnet.widgets._errors_painted import PaintedLabels, annotation_of
from napari_isdnet.widgets._image import levels_to_show
from napari_isdnet.widgets._lazy import pyramid_of
from napari_isdnet.widgets._places import in_units
from napari_isdnet.widgets._segment_layers import CLASSES
from napari_isdnet.window import Window

CLASS_HEADER = ("Class", "IoU", "F1", "Precision", "Recall", "Boundary F1")
WORST_HEADER = ("Wrong", "Row, column", "Mostly")
_GRID_SLACK = 0.01
"""Two layers may lie this share of a pixel beside each other and still be on one grid (rounded scales)."""


class PyramidLabels:
    """A lazy label layer as a source: windows are read (or computed) when asked for."""

    channels, nodata, alpha = 1, float(NOT_EVALUATED), None
    pixel_size: PixelSize | None = None

    def __init__(
        self,
        pyramid: LivePyramid,
        name: str,
        georeference: GeoReference | None = None,
        origin: tuple[int, int] = (0, 0),
    ) -> None:
        self._pyramid, self.name, self.georeference, self.origin = pyramid, name, georeference, origin
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
        if self.live is None:
            return self
        return KnownLabels(self._pyramid, self.name, self.georeference, self.origin)

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
    """A class map that was chosen: its source, the classes where it names them, and what to know of those."""

    source: ImageSource
    classes: tuple[ClassInfo, ...] | None = None
    owned: bool = False
    notes: tuple[str, ...] = ()

    def close(self) -> None:
        """Release a file that was opened for this; a layer's data stay."""
        if self.owned:
            self.source.close()


def from_layer(layer: Any, at: tuple[int, int] | None = None) -> LabelMap:
    """A Labels layer of this or another plugin; :class:`InputError` for one that is no plane of class indices.

    ``at``: where its first pixel lies on a grid that it shares with another map.
    """
    if layer.ndim != 2:
        raise InputError(f"'{layer.name}' has {layer.ndim} axes; a class map has rows and columns: take one plane.")
    # Maps are put on one grid by their position, in rows and columns of that grid: it need not be one on the earth.
    place = None if at is None else GeoReference(None, (1.0, 0.0, float(at[1]), 0.0, 1.0, float(at[0])))
    painted = annotation_of(layer)
    if painted is not None:
        return LabelMap(PaintedLabels(painted, layer.name, place), tuple(painted.classes))
    classes = layer.metadata.get(CLASSES)
    pyramid = pyramid_of(layer)
    if pyramid is not None:
        return LabelMap(PyramidLabels(pyramid, layer.name, place), classes)
    levels = list(layer.data) if layer.multiscale else [layer.data]
    return LabelMap(ArraySource(levels, layer.name, "yx", georeference=place), classes)


def pair_layers(prediction: Any, truth: Any) -> tuple[LabelMap, LabelMap, Window | None]:
    """Two Labels layers as maps on one grid, where they lie in the world, and the pixels of the prediction that both
    cover; None where that is all of both.

    Raises :class:`InputError` for layers whose pixels do not coincide: their values are of different places.
    """
    maps = from_layer(prediction), from_layer(truth)
    (step, corner), (other_step, other_corner) = _pose(prediction, prediction.units), _pose(truth, prediction.units)
    ours, theirs = (item.source.shape for item in maps)
    reach = max(*ours, *theirs)
    pixel = float(np.linalg.norm(step, axis=0).min())
    if np.abs(step - other_step).max() * reach > 0.5 * pixel:
        raise InputError(
            f"The pixels of '{prediction.name}' are {_pixels(step)} in the viewer and those of '{truth.name}'"
            f" {_pixels(other_step)}; give both layers the same scale and rotation, or choose the truth as a file."
        )
    shift = np.linalg.solve(step, corner - other_corner)
    if np.abs(shift - np.round(shift)).max() > _GRID_SLACK:
        rows, columns = (abs(float(v - round(v))) for v in shift)
        raise InputError(
            f"'{truth.name}' lies {rows:.2f} rows and {columns:.2f} columns beside the pixels of '{prediction.name}';"
            f" move one of the layers (its translate) so that their pixels coincide."
        )
    offset = round(float(shift[0])), round(float(shift[1]))
    part = Window.whole(ours).intersect(Window.whole(theirs).shifted(-offset[0], -offset[1]))
    if part.empty:
        raise InputError(
            f"'{prediction.name}' and '{truth.name}' lie beside each other in the viewer; choose the truth of this very"
            f" image, or move it there (its translate)."
        )
    same = offset == (0, 0) and ours == theirs
    return from_layer(prediction, offset), from_layer(truth, (0, 0)), None if same else part


def _pose(layer: Any, units: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Steps of one row and one column in ``units``, as the columns of a matrix, and where the first pixel lies."""
    corner = in_units(layer, (0, 0), units)
    steps = [in_units(layer, end, units) - corner for end in ((1, 0), (0, 1))]
    return np.stack(steps, axis=1), corner


def _pixels(step: npt.NDArray[np.float64]) -> str:
    height, width = np.linalg.norm(step, axis=0)
    turned = abs(step[0, 1]) + abs(step[1, 0]) > 1e-9 * (height + width)
    return f"{height:g} x {width:g}{' and turned' if turned else ''}"


def with_origin(item: LabelMap, store: str | None) -> LabelMap:
    """A layer's map that knows where in its image the result it shows begins (slow: reads the result's header)."""
    if store is None or not isinstance(item.source, PyramidLabels):
        return item
    with contextlib.suppress(InputError):  # moved or deleted meanwhile: the layer is still a map
        item.source.origin = LabelStore.open(Path(store)).origin
    return item


def from_file(path: str) -> LabelMap:
    """A class map in any format that ``evaluate`` reads (slow: reads the header)."""
    source, classes = open_labels(Path(path))
    return LabelMap(source, classes, owned=True)


@dataclass(frozen=True)
class Question:
    """What is compared: ``class_index`` None for any class; ``tolerance`` in pixels, 0 leaves boundaries in.

    ``part``: what of the prediction truth covers, where the two do not cover the same.
    """

    class_index: int | None = None
    tolerance: float = 3.0
    region: Window | None = None
    part: Window | None = None

    def __post_init__(self) -> None:
        if self.region is not None and self.part is not None and self.region.intersect(self.part).empty:
            raise InputError("The chosen region holds nothing that both maps cover; choose another or 'Whole image'.")


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
        theirs = truth.source.live if isinstance(truth.source, PyramidLabels) else None
        return LiveErrors(errors, live, {} if theirs is None else {theirs: errors.offset})
    return TilePyramid(
        levels_to_show(errors.levels), lambda level, window: errors.read(window, level)[..., 0], fill=NOT_EVALUATED
    )


def error_colors() -> dict[int | None, tuple[float, float, float, float]]:
    """Colours of the codes; correct and not evaluated are clear."""
    clear = (0.0, 0.0, 0.0, 0.0)
    shown = {code: (r / 255, g / 255, b / 255, 1.0) for code, (r, g, b) in ERROR_COLORS.items()}
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
    if question.part is not None:
        window = result.region
        note = (
            f"Compared where both maps lie: {window.height:,} x {window.width:,} pixels from row {window.row:,}, column"
            f" {window.column:,} of the prediction."
        )
        result = replace(result, notes=(note, *result.notes))
    return replace(result, notes=(*prediction.notes, *truth.notes, *result.notes)), question


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


def worst_rows(result: Evaluation, index: int | None = None) -> list[tuple[Window, tuple[str, str, str]]]:
    """(window, cells) of the worst windows, worst first: of any class, or of one."""
    if index is not None:
        found = result.worst_by_class[index] if index < len(result.worst_by_class) else ()
        return [(w.window, (_share(w), _corner(w.window), _kinds(w))) for w in found]
    names = result.classes
    confused = [[f"{names[c.truth].name} → {names[c.predicted].name}" for c in w.confusions[:2]] for w in result.worst]
    return [(w.window, (_share(w), _corner(w.window), ", ".join(texts))) for w, texts in zip(result.worst, confused)]


def _kinds(worst: ClassWindow) -> str:
    kinds = ((worst.missed, "missed"), (worst.false_alarm, "false alarm"))
    return ", ".join(f"{pixels:,} {kind}" for pixels, kind in kinds if pixels)


def _share(worst: WorstWindow | ClassWindow) -> str:
    """Percent, with a digit more where whole ones would say nothing."""
    share = 100 * worst.share
    return f"{share:.0f} %" if share >= 9.5 else f"{share:.1f} %"


def _corner(window: Window) -> str:
    return f"{window.row:,}, {window.column:,}"


def summary(result: Evaluation) -> str:
    """The figures in one sentence, of which maps, and what a reader must know of them."""
    # Of an annotation most is not painted: its few pixels are what the figures are of.
    counted, area = result.confusion.evaluated, result.region.area
    pixels = f"{area:,} pixels" if counted == area else f"{counted:,} of {area:,} pixels"
    figures = f"mIoU {percent(result.mean_iou)} · accuracy {percent(result.accuracy)}"
    text = f"{result.prediction} against {result.truth}: {figures} · {pixels}"
    return " ".join([f"{text}.", *result.notes]) if result.notes else text


def named(result: Evaluation, prediction: str, truth: str) -> Evaluation:
    """The evaluation under the names that the user sees."""
    return replace(result, prediction=prediction, truth=truth)


def zoom_for(window: Window, scale: Sequence[float], canvas: Sequence[float]) -> float:
    """Canvas pixels per world unit at which ``window`` fills two thirds of the canvas."""
    height, width = window.height * abs(scale[-2]), window.width * abs(scale[-1])
    return 0.67 * min(canvas[-2] / max(height, 1e-12), canvas[-1] / max(width, 1e-12))
