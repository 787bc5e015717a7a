"""The parts of the HTML report as text: figures, tables, confusion matrix, pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from napari_isdnet.engine.errors import ERROR_COLORS, ERROR_NAMES
from napari_isdnet.engine.evaluation import ClassFigures, Evaluation
from napari_isdnet.engine.metrics import ratio
from napari_isdnet.engine.report_style import STYLE
from napari_isdnet.engine.worst import WorstWindow
from napari_isdnet.io.units import symbol_of


@dataclass(frozen=True)
class Shown:
    """A picture of the report: its caption and its ``data:`` address."""

    caption: str
    uri: str


def page(
    evaluation: Evaluation,
    overviews: Sequence[Shown],
    per_class: Sequence[Shown],
    crops: Sequence[tuple[WorstWindow, Sequence[Shown]]],
) -> str:
    """The whole report as one HTML document that needs no other file."""
    parts = [
        _heading(evaluation),
        _cards(evaluation),
        "".join(f'<p class="note">{escape(note)}</p>' for note in evaluation.notes),
        "<h2>Classes</h2>",
        _class_table(evaluation),
        "<h2>Confusion matrix</h2>",
        _matrix(evaluation),
        f"<h2>Overview</h2>{_grid(overviews)}{_legend(evaluation)}",
    ]
    if per_class:
        parts.append(f"<h2>Errors by class</h2>{_error_legend((1, 2, 4, 5))}{_grid(per_class)}")
    if crops:
        parts.append("<h2>Windows with the most wrong pixels</h2>" + "".join(_worst(evaluation, *c) for c in crops))
    title = escape(f"{evaluation.prediction}: evaluation")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def percent(value: float, digits: int = 1) -> str:
    """``0.123`` as ``12.3 %``; a dash where there is no figure."""
    return "–" if math.isnan(value) else f"{100 * value:.{digits}f} %"


def thousands(value: int) -> str:
    """``1234567`` as ``1 234 567`` (thin spaces)."""
    return f"{value:,}".replace(",", "\u202f")


def area_text(area: float | None, unit: str) -> str:
    """An area in a unit that a person would use: m² become ha from 1 ha and km² from 10 km²; µm² mm², from 1 m² m²."""
    if area is None:
        return "–"
    unit = symbol_of(unit)
    if unit == "µm" and area >= 1e12:  # land, in the unit that OME files are written in
        area, unit = area / 1e12, "m"
    if unit == "m" and area >= 1e4:
        return f"{area / 1e6:,.2f} km²" if area >= 1e7 else f"{area / 1e4:,.2f} ha"
    if unit == "µm" and area >= 1e4:
        return f"{area / 1e6:,.3f} mm²"
    return f"{area:,.1f} {unit}²"


def _heading(evaluation: Evaluation) -> str:
    region = evaluation.region
    return (
        f"<h1>{escape(evaluation.prediction)}</h1>"
        f'<p class="soft">compared with truth {escape(evaluation.truth)} · {thousands(region.height)} ×'
        f" {thousands(region.width)} pixels from row {region.row}, column {region.column} · boundary tolerance"
        f" {evaluation.boundary.tolerance:g} px</p>"
    )


def _cards(evaluation: Evaluation) -> str:
    matrix = evaluation.confusion
    cards = [
        ("mIoU", percent(evaluation.mean_iou)),
        ("Mean F1", percent(evaluation.mean_f1)),
        ("Boundary F1", percent(evaluation.mean_boundary_f1)),
        ("Accuracy", percent(evaluation.accuracy)),
        ("Pixels evaluated", thousands(matrix.evaluated)),
        ("Pixels left out", thousands(matrix.ignored)),
    ]
    boxes = "".join(f'<div class="card"><span class="soft">{name}</span><b>{value}</b></div>' for name, value in cards)
    counted = ", ".join(evaluation.counted) or "no class"
    left_out = f" Ignored: {', '.join(evaluation.ignored_names)}." if evaluation.ignored_names else ""
    meant = "Pixels left out have no truth or an ignored class."
    return (
        f'<div class="cards">{boxes}</div><p class="soft">Means over {escape(counted)}.{escape(left_out)} {meant}</p>'
    )


def _swatch(color: str) -> str:
    return f'<span class="swatch" style="background:{color}"></span>'


def _hex(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _class_table(evaluation: Evaluation) -> str:
    heads: tuple[str, ...] = ("Class", "IoU", "F1", "Precision", "Recall", "Boundary F1", "Truth px", "Predicted px")
    areas = evaluation.pixel_area is not None
    unit = evaluation.pixel_size.unit if evaluation.pixel_size else ""
    heads += ("Truth area", "Predicted area") if areas else ()
    rows = "".join(_class_row(figures, areas, unit) for figures in evaluation.per_class)
    return (
        f'<div class="panel"><table><thead><tr>{"".join(f"<th>{h}</th>" for h in heads)}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _class_row(figures: ClassFigures, areas: bool, unit: str) -> str:
    bar = 0 if math.isnan(figures.iou) else 100 * figures.iou
    name = escape(figures.name) + (" (ignored)" if figures.ignored else "")
    cells = [
        f"{_swatch(figures.color)}{name}",
        f'{percent(figures.iou)}<span class="bar"><i style="width:{bar:.1f}%"></i></span>',
        *(percent(v) for v in (figures.f1, figures.precision, figures.recall, figures.boundary_f1)),
        thousands(figures.truth_pixels),
        thousands(figures.predicted_pixels),
    ]
    if areas:
        cells += [area_text(figures.truth_area, unit), area_text(figures.predicted_area, unit)]
    kind = ' class="ignored"' if figures.ignored or not figures.present else ""
    return f"<tr{kind}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _matrix(evaluation: Evaluation) -> str:
    """Rows are truth; each cell is the share of its row, blue on the diagonal and red off it."""
    counts = evaluation.confusion.counts
    shown = [k for k in range(len(counts)) if counts[k].sum() + counts[:, k].sum()]
    head = "".join(f"<th>{_swatch(evaluation.classes[k].hex)}{escape(evaluation.classes[k].name)}</th>" for k in shown)
    rows = []
    for t in shown:
        shares = ratio(counts[t], counts[t].sum())
        cells = "".join(_cell(float(shares[p]), int(counts[t, p]), t == p) for p in shown)
        info = evaluation.classes[t]
        rows.append(f"<tr><th>{_swatch(info.hex)}{escape(info.name)}</th>{cells}</tr>")
    return (
        '<div class="panel"><p class="soft">Row: truth. Column: prediction. Share of the row, and pixels.</p>'
        f'<table class="matrix"><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _cell(share: float, count: int, right: bool) -> str:
    strength = 0.0 if math.isnan(share) else share
    color = f"rgba(var(--{'heat' if right else 'bad'}),{0.06 + 0.5 * strength if count else 0:.2f})"
    return f'<td style="background:{color}">{percent(share)}<small>{thousands(count)}</small></td>'


def _figure(shown: Shown) -> str:
    caption = escape(shown.caption)
    return f'<figure><img src="{shown.uri}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def _grid(pictures: Iterable[Shown]) -> str:
    return f'<div class="grid">{"".join(_figure(p) for p in pictures)}</div>'


def _legend(evaluation: Evaluation) -> str:
    items = "".join(f"<span>{_swatch(c.hex)}{escape(c.name)}</span>" for c in evaluation.classes)
    return f'<p class="legend">{items}</p>{_error_legend((3, 6))}'


def _error_legend(codes: Iterable[int]) -> str:
    items = (f"<span>{_swatch(_hex(ERROR_COLORS[c]))}{ERROR_NAMES[c]}</span>" for c in codes)
    return f'<p class="legend">{"".join(items)}</p>'


def _worst(evaluation: Evaluation, worst: WorstWindow, crops: Sequence[Shown]) -> str:
    names = evaluation.classes
    window = worst.window
    told = ", ".join(
        f"{names[c.truth].name} called {names[c.predicted].name} ({thousands(c.pixels)})" for c in worst.confusions
    )
    return (
        f'<div class="panel worst"><h3>Row {window.row}, column {window.column}: {thousands(worst.wrong)} wrong pixels'
        f" ({percent(worst.share)})</h3>"
        f'<p class="soft">{escape(told)}</p><div class="crops">{"".join(_figure(c) for c in crops)}</div></div>'
    )
