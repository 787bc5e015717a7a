"""The part of the Segment dock that hands on: the command line that does the same, and exports of the last result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from qtpy.QtWidgets import QFileDialog, QMenu

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.sink import SUFFIXES, result_path
from napari_isdnet.widgets import _segment_layers as layers
from napari_isdnet.widgets._clipboard import copy_text
from napari_isdnet.widgets._notify import notify_error, notify_info
from napari_isdnet.widgets._segment_controller import Finished, Settings, command
from napari_isdnet.widgets._segment_form import TITLES, SegmentForm
from napari_isdnet.widgets._writer import write_result
from napari_isdnet.window import Window

POLYGONS = {"geojson": "GeoJSON polygons", "gpkg": "GeoPackage polygons (QGIS, ArcGIS)"}


class Exporting(SegmentForm):
    """Copies commands, and writes the last result in other formats, beside whatever else runs."""

    finished: Finished | None

    def settings(self) -> Settings:
        """What is chosen now."""
        raise NotImplementedError

    def roi(self, kind: str) -> Window | None:
        """The chosen region."""
        raise NotImplementedError

    def _connect_exports(self) -> None:
        self.copy_button.clicked.connect(self.copy_command)
        menu = QMenu(self)
        for key, title in TITLES.items():
            menu.addAction(f"{title}…", partial(self._choose_export, key))
        for key, title in POLYGONS.items():
            menu.addAction(f"{title}…", partial(self._choose_export, key))
        self.export_button.setMenu(menu)
        self.export_bar.started.connect(lambda: self.export_button.setEnabled(False))
        self.export_bar.ended.connect(lambda: self.export_button.setEnabled(self.finished is not None))

    def copy_command(self) -> None:
        """Put the command line that does the same on the clipboard."""
        try:
            layer, settings = self.image.currentData(), self.settings()
            path, colors = layers.file_for_command(layer)
            text = command(path, replace(settings, **colors), self.roi(settings.region))
        except InputError as error:
            notify_error(error)
            return
        copy_text(self.copy_button, text)

    def _choose_export(self, kind: str) -> None:
        if self.finished is None:
            return
        store = self.finished.labels
        folder = Path(self.output.text())
        name = folder / f"{store.name}.{kind}" if kind in POLYGONS else result_path(folder, store.name, kind)
        suffix = f".{kind}" if kind in POLYGONS else SUFFIXES[kind]
        path, _ = QFileDialog.getSaveFileName(self, "Export the result", str(name), f"*{suffix}")
        if path:
            self.export(Path(path if path.endswith(suffix) else path + suffix), kind)

    def export(self, path: Path, kind: str) -> None:
        """Write the last result to ``path`` in one of the engine's formats, or as :data:`POLYGONS`."""
        assert self.finished is not None
        simplify, min_area = float(self.outlines.currentData()), self.min_area.value()
        work = write_result(self.finished.labels, path, kind, simplify, min_area)
        self.export_bar.run(
            work, on_result=lambda written: notify_info(f"Written: {written}"), on_error=notify_error,
            title="Exporting",
        )  # fmt: skip


def written_in_words(paths: Iterable[str]) -> str:
    """What was written, with its folder said once."""
    places = [Path(path) for path in paths]
    folders = {place.parent for place in places}
    if len(folders) != 1:
        return f"Written: {', '.join(map(str, places))}"
    return f"Written to {folders.pop()}: {', '.join(place.name for place in places)}"
