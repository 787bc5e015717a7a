"""Writing an evaluation down: an HTML report that stands alone, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, Final

import numpy as np

from napari_isdnet.engine.errors import ERROR_COLORS, error_map
from napari_isdnet.engine.evaluation import Evaluation
from napari_isdnet.engine.labels import leave_out, pair_labels
from napari_isdnet.engine.pictures import Shades, class_colors, colored, data_uri, overview
from napari_isdnet.engine.report_html import Shown, page, percent
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import disk_errors, write_atomic
from napari_isdnet.io.source import ImageSource
from napari_isdnet.window import Window

OVERVIEW_PIXELS: Final = 720
CROP_PIXELS: Final = 360
MOST_CROPS: Final = 12
MOST_CLASS_MAPS: Final = 24


def check_image(image: ImageSource | None, prediction: ImageSource) -> None:
    """Raise :class:`InputError` for an image of another size than the prediction's."""
    if image is not None and image.shape != prediction.shape:
        raise InputError(
            f"The image {image.name} is {image.shape[0]} x {image.shape[1]} pixels and the prediction"
            f" {prediction.shape[0]} x {prediction.shape[1]}; give the image that was segmented, or none."
        )


def write_report(
    evaluation: Evaluation,
    prediction: ImageSource,
    truth: ImageSource,
    image: ImageSource | None,
    directory: str | Path,
) -> dict[str, Path]:
    """Write ``report.html``, ``evaluation.json``, ``evaluation.csv`` and ``confusion.csv`` into ``directory``.

    ``image`` is the picture that was segmented, on the prediction's grid; None leaves it out. Every file is written
    whole or not at all, the JSON last; earlier reports are replaced. Returns the paths by file name.
    """
    folder = Path(directory)
    check_image(image, prediction)
    html = _Pictures(evaluation, prediction, truth, image).report()
    texts = {
        "report.html": html,
        "evaluation.csv": classes_csv(evaluation),
        "confusion.csv": confusion_csv(evaluation),
        "evaluation.json": json.dumps(evaluation.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    }
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_atomic(folder / name, text.encode("utf-8"))
    return {name: folder / name for name in texts}


class _Pictures:
    """Reads what the report shows; holds no more than one overview of each map and one crop at a time."""

    def __init__(
        self, evaluation: Evaluation, prediction: ImageSource, truth: ImageSource, image: ImageSource | None
    ) -> None:
        self.evaluation, self.image = evaluation, image
        self.pair = pair_labels(prediction, truth, evaluation.confusion.ignored_classes)
        self.colors = class_colors(evaluation.classes)
        self.shades = None
        if image is not None:
            self.shades = Shades(image, overview(image, evaluation.region, OVERVIEW_PIXELS, labels=False))

    def report(self) -> str:
        overviews, (prediction, truth, tolerance) = self._pictures(self.evaluation.region, OVERVIEW_PIXELS)
        shown = [c for c in self.evaluation.per_class if c.present and not c.ignored][:MOST_CLASS_MAPS]
        maps = [
            Shown(
                f"{c.name}: IoU {percent(c.iou)}",
                data_uri(colored(error_map(prediction, truth, c.index, tolerance), ERROR_COLORS)),
            )
            for c in shown
        ]
        crops = [
            (worst, self._pictures(worst.window.intersect(self.evaluation.region), CROP_PIXELS)[0])
            for worst in self.evaluation.worst[:MOST_CROPS]
        ]
        return page(self.evaluation, overviews, maps, crops)

    def _pictures(self, region: Window, longest: int) -> tuple[list[Shown], tuple[Any, Any, float]]:
        """Image, truth, prediction and errors over ``region``, and the two maps with their tolerance in samples."""
        prediction = overview(self.pair.prediction, region, longest, labels=True)[..., 0].astype(np.uint8)
        truth = overview(self.pair.truth, region.shifted(*self.pair.offset), longest, labels=True)[..., 0]
        truth = leave_out(truth.astype(np.uint8), self.pair.ignore)
        tolerance = self.evaluation.boundary.tolerance * min(1.0, longest / max(region.shape))
        tolerance = max(tolerance, min(1.0, self.evaluation.boundary.tolerance))
        shown = []
        if self.image is not None and self.shades is not None:
            picture = self.shades(overview(self.image, region, longest, labels=False))
            shown.append(Shown("Image", data_uri(picture, photo=True)))
        shown.append(Shown("Truth", data_uri(colored(truth, self.colors))))
        shown.append(Shown("Prediction", data_uri(colored(prediction, self.colors))))
        wrong = error_map(prediction, truth, None, tolerance)
        shown.append(Shown("Errors", data_uri(colored(wrong, ERROR_COLORS))))
        return shown, (prediction, truth, tolerance)


def classes_csv(evaluation: Evaluation) -> str:
    """One row per class with every figure; an empty cell where there is none."""
    rows = [vars(figures) for figures in evaluation.per_class]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if v is None or v != v else v for k, v in row.items()})
    return text.getvalue()


def confusion_csv(evaluation: Evaluation) -> str:
    """Pixels: one row per class of truth, one column per predicted class, and ``unpredicted`` last."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["truth \\ prediction", *(c.name for c in evaluation.classes), "unpredicted"])
    matrix = evaluation.confusion
    for info, counts, missing in zip(evaluation.classes, matrix.counts, matrix.unpredicted):
        writer.writerow([info.name, *counts.tolist(), int(missing)])
    return text.getvalue()
