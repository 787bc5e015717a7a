"""The result of comparing a prediction with truth: counts, the figures made of them, and their JSON form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from napari_isdnet.classes import ClassInfo, classes_from
from napari_isdnet.engine.boundary import BoundaryScore
from napari_isdnet.engine.metrics import ConfusionMatrix, mean
from napari_isdnet.engine.worst import ClassWindow, Confusion, WorstWindow
from napari_isdnet.exceptions import InputError
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
        """JSON-ready: figures for readers, counts for :meth:`from_dict`; NaN becomes None."""
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

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evaluation:
        """The evaluation that :meth:`to_dict` wrote; raises :class:`InputError` for anything else."""
        if data.get("format") != FORMAT or data.get("version") != VERSION:
            raise InputError(
                f"This is no evaluation of version {VERSION} (format {data.get('format')!r}, version"
                f" {data.get('version')!r}); run 'napari-isdnet evaluate' again."
            )
        try:
            return cls._from_dict(data)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"The evaluation is damaged ({error!r}); run 'napari-isdnet evaluate' again.") from error

    @classmethod
    def _from_dict(cls, data: Mapping[str, Any]) -> Evaluation:
        rows, size = data["classes"], data["pixel_size"]
        matrix = ConfusionMatrix(len(rows), [c["index"] for c in rows if c["ignored"]])
        matrix.counts = np.array(data["confusion"], np.int64).reshape(len(rows), len(rows))
        matrix.unpredicted = np.array([c["unpredicted_pixels"] for c in rows], np.int64)
        matrix.ignored = int(data["pixels"]["ignored"])
        edge = BoundaryScore(len(rows), data["boundary_tolerance"])
        for name in _BOUNDARY:
            setattr(edge, name, np.array(data["boundary_counts"][name], np.int64).reshape(len(rows)))
        return cls(
            prediction=data["prediction"],
            truth=data["truth"],
            region=Window(**data["region"]),
            classes=classes_from({"name": c["name"], "color": c["color"]} for c in rows),
            confusion=matrix,
            boundary=edge,
            pixel_size=None if size is None else PixelSize(**size),
            worst=tuple(_worst_from(w) for w in data["worst_windows"]),
            # Evaluations of before have none.
            worst_by_class=tuple(tuple(map(_of_class, w)) for w in data.get("worst_windows_by_class", ())),
            notes=tuple(data["notes"]),
        )


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


def _worst_from(data: Mapping[str, Any]) -> WorstWindow:
    confusions = tuple(Confusion(**c) for c in data["confusions"])
    return WorstWindow(Window(**data["window"]), data["wrong"], data["evaluated"], confusions)


def _of_class(data: Mapping[str, Any]) -> ClassWindow:
    return ClassWindow(Window(**data["window"]), data["missed"], data["false_alarm"], data["evaluated"])
