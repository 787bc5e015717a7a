"""The result of comparing a prediction with truth: counts, the figures made of them, and their JSON form."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from napari_isdnet.classes import ClassInfo
from napari_isdnet.engine.boundary import BoundaryScore
from napari_isdnet.engine.metrics import ConfusionMatrix, mean
from napari_isdnet.engine.worst import ClassWindow, WorstWindow
from napari_isdnet.io.source import PixelSize
from napari_isdnet.window import Window

FORMAT: Final = "napari-isdnet evaluation"
VERSION: Final = 1
_BOUNDARY: Final = ("predicted", "predicted_hit", "true", "true_hit")


@dataclass(frozen=True)
class ClassFigures:
    """Figures of one class; NaN where they do not exist. Areas are of the evaluated pixels, in ``unit`` squared."""

    index: int
    name: str
    color: str
    ignored: bool
    iou: float
    precision: float
    recall: float
    f1: float
    boundary_precision: float
    boundary_recall: float
    boundary_f1: float
    truth_pixels: int
    predicted_pixels: int
    unpredicted_pixels: int
    truth_area: float | None
    predicted_area: float | None

    @property
    def present(self) -> bool:
        """True when either map holds the class."""
        return self.truth_pixels + self.predicted_pixels + self.unpredicted_pixels > 0


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was compared, the counts, and the worst windows, of any class and of each class (in class order).

    ``region`` is in level-0 pixels of the prediction; ``notes`` are sentences that a reader of the figures must know.
    """

    prediction: str
    truth: str
    region: Window
    classes: tuple[ClassInfo, ...]
    confusion: ConfusionMatrix
    boundary: BoundaryScore
    pixel_size: PixelSize | None = None
    worst: tuple[WorstWindow, ...] = ()
    worst_by_class: tuple[tuple[ClassWindow, ...], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ignored_names(self) -> tuple[str, ...]:
        """Names of the classes that were left out."""
        return tuple(self.classes[i].name for i in self.confusion.ignored_classes)

    @property
    def mean_iou(self) -> float:
        """mIoU over the classes that occur, without the ignored ones."""
        return self.confusion.mean_iou

    @property
    def accuracy(self) -> float:
        """Overall accuracy."""
        return self.confusion.accuracy

    @property
    def mean_f1(self) -> float:
        """Mean F1."""
        return self.confusion.mean_f1

    @property
    def mean_boundary_f1(self) -> float:
        """Mean boundary F1 without the ignored classes."""
        score = self.boundary.f1.copy()
        score[list(self.confusion.ignored_classes)] = np.nan
        return mean(score)

    @property
    def counted(self) -> tuple[str, ...]:
        """Names of the classes that the mIoU is a mean of."""
        return tuple(c.name for c, iou in zip(self.classes, self.confusion.iou) if not math.isnan(iou))

    @property
    def pixel_area(self) -> float | None:
        """Area of a pixel in the pixel size's unit squared; None for degrees or an unknown size."""
        size = self.pixel_size
        return None if size is None or size.metres is None else size.row * size.column

    @property
    def per_class(self) -> tuple[ClassFigures, ...]:
        """Figures of every class, in class order."""
        matrix, edge, area = self.confusion, self.boundary, self.pixel_area
        truth, predicted = matrix.counts.sum(axis=1), matrix.counts.sum(axis=0)
        result = []
        for k, info in enumerate(self.classes):
            ignored = k in matrix.ignored_classes
            bounds = [math.nan] * 3 if ignored else [float(v[k]) for v in (edge.precision, edge.recall, edge.f1)]
            result.append(
                ClassFigures(
                    index=k,
                    name=info.name,
                    color=info.hex,
                    ignored=ignored,
                    iou=float(matrix.iou[k]),
                    precision=float(matrix.precision[k]),
                    recall=float(matrix.recall[k]),
                    f1=float(matrix.f1[k]),
                    boundary_precision=bounds[0],
                    boundary_recall=bounds[1],
                    boundary_f1=bounds[2],
                    truth_pixels=int(truth[k]),
                    predicted_pixels=int(predicted[k]),
                    unpredicted_pixels=int(matrix.unpredicted[k]),
                    truth_area=None if area is None else float(truth[k] * area),
                    predicted_area=None if area is None else float(predicted[k] * area),
                )
            )
        return tuple(result)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: figures for readers, and the counts that they are made of; NaN becomes None."""
        matrix, size = self.confusion, self.pixel_size
        return {
            "format": FORMAT,
            "version": VERSION,
            "prediction": self.prediction,
            "truth": self.truth,
            "region": asdict(self.region),
            "mean_iou": _number(self.mean_iou),
            "mean_f1": _number(self.mean_f1),
            "mean_boundary_f1": _number(self.mean_boundary_f1),
            "accuracy": _number(self.accuracy),
            "counted_classes": list(self.counted),
            "ignored_classes": list(self.ignored_names),
            "boundary_tolerance": self.boundary.tolerance,
            "pixels": {
                "evaluated": matrix.evaluated,
                "unpredicted": int(matrix.unpredicted.sum()),
                "ignored": matrix.ignored,
            },
            "pixel_size": None if size is None else {"row": size.row, "column": size.column, "unit": size.unit},
            "classes": [{k: _number(v) for k, v in vars(c).items()} for c in self.per_class],
            "confusion": matrix.counts.tolist(),
            "boundary_counts": {name: getattr(self.boundary, name).tolist() for name in _BOUNDARY},
            "worst_windows": [_worst_dict(w) for w in self.worst],
            "worst_windows_by_class": [
                [{**vars(w), "window": asdict(w.window), "share": w.share} for w in windows]
                for windows in self.worst_by_class
            ],
            "notes": list(self.notes),
        }


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _worst_dict(worst: WorstWindow) -> dict[str, Any]:
    return {
        "window": asdict(worst.window),
        "wrong": worst.wrong,
        "evaluated": worst.evaluated,
        "share": worst.share,
        "confusions": [vars(c) for c in worst.confusions],
    }
