"""The run's log: one CSV that a resumed run continues without doubled rows, and TensorBoard where asked."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import disk_errors, write_atomic


class History:
    """Rows of figures by step in ``log.csv``. Rows after ``step`` (of a run that was cut off) are dropped first."""

    def __init__(self, folder: Path, step: int, tensorboard: bool = False) -> None:
        self.path = folder / "log.csv"
        self.rows = [r for r in read_history(self.path) if int(r["step"]) <= step]
        self.columns = list(dict.fromkeys(k for r in self.rows for k in r))
        self._rewrite()
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Append one row; a new column rewrites the file, which is small.

        A row of the same step and columns is replaced: what was written and not saved in a checkpoint is done again.
        """
        row = {"step": str(step), **{k: f"{v:.7g}" for k, v in figures.items()}}
        again = [r for r in self.rows[-2:] if r["step"] == row["step"] and r.keys() == row.keys()]
        self.rows = [r for r in self.rows if r not in again] if again else self.rows
        self.rows.append(row)
        new = [k for k in row if k not in self.columns]
        self.columns += new
        if new or again:
            self._rewrite()
        else:
            self._append(row)
        for key, value in figures.items():
            if self._board is not None:
                self._board.add_scalar(key, value, step)

    def _append(self, row: Mapping[str, str]) -> None:
        size = self.path.stat().st_size
        try:
            with disk_errors(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns).writerow(row)
        except InputError:
            os.truncate(self.path, size)  # half a row would be read as another one
            raise

    def _rewrite(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns or ["step"])
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomic(self.path, text.getvalue().encode())

    def close(self) -> None:
        """Flush what TensorBoard holds back."""
        if self._board is not None:
            self._board.close()


def read_history(path: Path) -> list[dict[str, str]]:
    """Rows of a log, an empty list where there is none; empty cells are left out."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file) if row.get("step")]
