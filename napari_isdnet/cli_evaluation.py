"""What ``napari-isdnet evaluate`` compares with, where that is outlines, and its figures as a table."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.table import Table
from rich.text import Text

from napari_isdnet.cli_output import drive, print_wide
from napari_isdnet.engine.labels import open_labels
from napari_isdnet.engine.report_html import area_text, percent, thousands
from napari_isdnet.exceptions import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from napari_isdnet.engine.evaluation import Evaluation


@contextmanager
def painted_truth(
    outlines: Path, prediction: Path, classes_file: Path | None, layer: str | None, attribute: str | None
) -> Iterator[tuple[Path, Path]]:
    """Outlines as an annotation of the size of the prediction, and a file of its classes and those they add.

    Both are gone when the block ends. Raises :class:`InputError` for what cannot be painted, and where nothing names
    the classes of the prediction.
    """
    from napari_isdnet.annotation.outlines import import_outlines
    from napari_isdnet.annotation.store import AnnotationStore

    labels, classes = open_labels(prediction, classes_file)
    with closing(labels), tempfile.TemporaryDirectory(prefix="isdnet-truth-") as folder:
        if not classes:
            raise InputError(
                f"{prediction} does not name its classes, which {outlines.name} does; give --classes FILE."
            )
        say = partial(typer.echo, err=True)
        row, column = getattr(labels, "origin", None) or (0, 0)
        shape, place = labels.shape, labels.georeference
        if place is None or not place.crs:  # of a region: the outlines count the pixels of the image
            shape = (row + shape[0], column + shape[1])
        with AnnotationStore.create(Path(folder) / outlines.name, shape, classes) as store:
            steps = import_outlines(
                store,
                outlines,
                georeference=place,
                note=say,
                layer=layer,
                attribute=attribute,
            )
            drive(steps, outlines.name, "Interrupted; nothing was written.")
            known = [{"name": c.name, "color": c.color} for c in store.classes]
        names = Path(folder) / "classes.json"
        names.write_text(json.dumps(known), encoding="utf-8")
        yield Path(folder) / outlines.name, names


def print_evaluation(evaluation: Evaluation, console: Console | None = None) -> None:
    """Figures by class, their means, what was left out and the notes, to stdout unless a console is given."""
    unit = evaluation.pixel_size.unit if evaluation.pixel_size else ""
    areas = evaluation.pixel_area is not None
    table = Table(title=f"{evaluation.prediction} against {evaluation.truth}", title_justify="left")
    table.add_column("Class", overflow="fold", min_width=12)
    for name in ("IoU", "F1", "Precision", "Recall", "Boundary\nF1", "Truth px", *(("Truth area",) if areas else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for c in evaluation.per_class:
        name = Text("■ ", style=c.color) + Text(c.name + (" (ignored)" if c.ignored else ""), style="default")
        figures = [percent(v) for v in (c.iou, c.f1, c.precision, c.recall, c.boundary_f1)]
        area = [area_text(c.truth_area, unit)] if areas else []
        table.add_row(name, *figures, thousands(c.truth_pixels), *area, style="dim" if c.ignored else "")
    table.add_section()
    means = (evaluation.mean_iou, evaluation.mean_f1, None, None, evaluation.mean_boundary_f1)
    total = thousands(evaluation.confusion.evaluated)
    table.add_row("Mean", *("" if v is None else percent(v) for v in means), total, style="bold")
    ignored = f"; ignored: {', '.join(evaluation.ignored_names)}" if evaluation.ignored_names else ""
    missing = evaluation.confusion.ignored
    left_out = f"; {thousands(missing)} left out, 255 or an ignored class in the truth" if missing else ""
    lines = [
        f"mIoU {percent(evaluation.mean_iou, 2)} over {', '.join(evaluation.counted) or 'no class'}{ignored}."
        f" Accuracy {percent(evaluation.accuracy, 2)} of {total} pixels{left_out}.",
        *evaluation.notes,
    ]
    print_wide(table, lines, console)
