"""The figures of ``napari-isdnet evaluate`` as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from napari_isdnet.cli_output import print_wide
from napari_isdnet.engine.report_html import area_text, percent, thousands

if TYPE_CHECKING:
    from rich.console import Console

    from napari_isdnet.engine.evaluation import Evaluation


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
