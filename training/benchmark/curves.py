"""The learning curves of the annotation loop as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from napari_isdnet_training.benchmark.loop import PLACES
from napari_isdnet_training.benchmark.output import drawn

COLORS = {"suggested": "#c0392b", "random": "#2c3e50", "hardest": "#d68910"}


def curve(rows: Sequence[dict[str, Any]], places: str) -> tuple[list[float], list[float], list[float], list[float]]:
    """Strokes so far, and mean, least and largest mIoU of the right half over the seeds, by round.

    A row counts the strokes of its own round.
    """
    found: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        if row["places"] == places:
            found.setdefault(int(row["round"]), []).append((float(row["strokes"]), float(row["miou_right"])))
    values = [np.array(found[number]) for number in sorted(found)]
    return (
        [float(n) for n in np.cumsum([v[:, 0].mean() for v in values])],
        [float(v[:, 1].mean()) for v in values],
        [float(v[:, 1].min()) for v in values],
        [float(v[:, 1].max()) for v in values],
    )


def plot_loop(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """mIoU of the right half against strokes, between the model before and the whole mask (PNG or SVG)."""
    before = [float(r["miou_right"]) for r in rows if r["places"] == "before"]
    full = [float(r["miou_right"]) for r in rows if r["places"] == "full"]
    with drawn(path, 6.4, 3.8) as figure:
        axes = figure.add_subplot()
        for places in PLACES:
            strokes, mean, least, most = curve(rows, places)
            if strokes:
                x, y = [0.0] * len(before[:1]) + strokes, before[:1] + mean
                axes.plot(x, y, "o-", color=COLORS[places], label=f"{places} places")
                axes.fill_between(strokes, least, most, color=COLORS[places], alpha=0.15, linewidth=0)
        for values, text, style in ((before, "before", ":"), (full, "whole mask of the left half", "--")):
            if values:
                axes.axhline(float(np.mean(values)), color="#7f8c8d", linestyle=style, label=text)
        axes.set_xlabel("strokes in the left half")
        axes.set_ylabel("mIoU of the right half")
        axes.legend(fontsize=8)
