"""CSV files that a cut-off run leaves whole, with the command in their first line; a table and a plot of them."""

from __future__ import annotations

import csv
import inspect
import io
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from napari_isdnet.exceptions import InputError, MissingExtra
from napari_isdnet.io.disk import replacing, write_atomic
from napari_isdnet.io.lock import alone
from napari_isdnet.progress import Progress
from napari_isdnet.system import shell_line

P = ParamSpec("P")
R = TypeVar("R")
Steps = Generator[Progress, None, R]
Row = Mapping[str, Any]


def typed_command() -> str:
    """The command as it was typed, with the program's plain name."""
    return shell_line([Path(sys.argv[0]).name, *sys.argv[1:]])


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Row], notes: Sequence[str] = ()) -> None:
    """Write rows under ``# `` lines of notes; a name that exists is replaced in one step."""
    buffer = io.StringIO()
    for note in notes:
        buffer.write("# " + " ".join(note.split()) + "\n")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[_text(row.get(c)) for c in columns] for row in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue().encode())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a file written here; none where there is no file."""
    if not path.is_file():
        return []
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines))


def alone_at(name: str) -> Callable[[Callable[P, Steps[R]]], Callable[P, Steps[R]]]:
    """Of a benchmark whose argument ``name`` is its file (or None): nobody else writes that file while it runs."""

    def wrap(benchmark: Callable[P, Steps[R]]) -> Callable[P, Steps[R]]:
        arguments = inspect.signature(benchmark)

        @wraps(benchmark)
        def run(*args: P.args, **kwargs: P.kwargs) -> Steps[R]:
            path = arguments.bind(*args, **kwargs).arguments.get(name)
            with nullcontext() if path is None else alone(path):
                return (yield from benchmark(*args, **kwargs))

        return run

    return wrap


class RunLog:
    """A CSV to which finished runs are added one by one, so that a cut-off benchmark goes on where it was.

    ``keys`` are the columns that identify a run. A file with other columns is refused. One process writes it at a time:
    see :func:`alone_at`.
    """

    def __init__(self, path: Path, columns: Sequence[str], keys: Sequence[str], notes: Sequence[str] = ()) -> None:
        self.path, self.columns, self.keys = path, tuple(columns), tuple(keys)
        self.rows: list[dict[str, Any]] = list(read_csv(path))
        if self.rows and tuple(self.rows[0]) != self.columns:
            raise InputError(
                f"{path} has the columns {', '.join(self.rows[0])}, not those of this benchmark; give another --output."
            )
        old = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.notes = [line[2:] for line in old if line.startswith("# ")]
        self.notes += [" ".join(n.split()) for n in notes if " ".join(n.split()) not in self.notes]

    def done(self, **key: Any) -> bool:
        """True when a run with this key is in the file."""
        return self.find(**key) is not None

    def find(self, **key: Any) -> dict[str, Any] | None:
        """The first run with this key, every value as text, or None."""
        wanted = {k: _text(v) for k, v in key.items()}
        return next((row for row in self.rows if all(row[k] == v for k, v in wanted.items())), None)

    def add(self, row: Row) -> None:
        """Append a finished run; the file is whole at any moment."""
        self.rows.append({c: _text(row.get(c)) for c in self.columns})
        write_csv(self.path, self.columns, self.rows, self.notes)


MARKERS = {
    "whole": ("o", "in one piece"),
    "local": ("s", "in tiles"),
    "global": ("D", "shrunk"),
    "half": ("^", "at half the side"),
    "quarter": ("v", "at a quarter"),
}


def check_picture(path: Path | None) -> None:
    """Raise :class:`InputError`, before anything is measured, for a name that no picture can be written to."""
    if path is not None and path.suffix.lower() not in (".png", ".svg"):
        raise InputError(f"A plot is written as .png or .svg, got '{path.name}'; give it such a name.")


@contextmanager
def drawn(path: Path, width: float, height: float) -> Iterator[Any]:
    """A figure of so many inches to draw in; it is a file, PNG or SVG by the suffix, when the block ends."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("The plot", "matplotlib", "train") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, overwrite=True) as temporary:
        figure.savefig(temporary, dpi=110, format=path.suffix[1:].lower())


def plot_speed(rows: Sequence[Row], path: Path) -> None:
    """Images a second of every row that has a figure: a line a network, a panel a size."""
    rows = [row for row in rows if row["fps"]]
    sizes = sorted({(int(r["height"]), int(r["width"])) for r in rows})
    lines = max(
        (len({r["network"] for r in rows if (int(r["height"]), int(r["width"])) == s}) for s in sizes), default=1
    )
    with drawn(path, 6.4 * max(1, len(sizes)), 1.6 + 0.24 * lines) as figure:
        for index, size in enumerate(sizes):
            axes = figure.add_subplot(1, len(sizes), index + 1)
            _plot_size(axes, [r for r in rows if (int(r["height"]), int(r["width"])) == size])
            axes.set_title(f"{size[0]} x {size[1]}")


def _plot_size(axes: Any, rows: Sequence[Row]) -> None:
    """The networks by what they do in one piece (else by their slowest way), the slowest first, the fastest on top."""
    ways: dict[str, dict[str, float]] = {}
    for row in rows:
        ways.setdefault(str(row["network"]), {})[str(row["mode"])] = float(row["fps"])
    ranked = sorted(ways, key=lambda name: ways[name].get("whole", min(ways[name].values())))
    for line, name in enumerate(ranked):
        own = name.startswith("isdnet")
        color = "#c0392b" if own else "#34495e"
        axes.plot([min(ways[name].values()), max(ways[name].values())], [line, line], color="#d0d5d8", zorder=1)
        for mode, value in ways[name].items():
            filled = mode == "whole"
            face = color if filled else "white"
            axes.scatter(
                value, line, marker=MARKERS[mode][0], s=34 if filled else 22, facecolor=face, edgecolor=color, zorder=2
            )
    axes.set_yticks(range(len(ranked)), ranked)
    for label in axes.get_yticklabels():
        label.set_color("#c0392b" if label.get_text().startswith("isdnet") else "#2c3e50")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="x", color="#eceff1")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.02)
    axes.set_xlabel("images a second")
    shown = {mode for way in ways.values() for mode in way}
    for mode, (marker, text) in MARKERS.items():
        if mode in shown:
            face = "#34495e" if mode == "whole" else "white"
            axes.scatter(
                [], [], marker=marker, s=34 if mode == "whole" else 22, facecolor=face, edgecolor="#34495e", label=text
            )
    axes.legend(loc="upper left", frameon=True, fontsize="small")
