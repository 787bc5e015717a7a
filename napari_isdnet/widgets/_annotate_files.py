"""The part of the Annotate dock that imports and exports files."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QFileDialog, QInputDialog

from napari_isdnet.annotation.project import ENDING
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.progress import Progress
from napari_isdnet.system import shell_line
from napari_isdnet.widgets import _annotate_exchange as exchange
from napari_isdnet.widgets._annotate_next import Flying
from napari_isdnet.widgets._clipboard import copy_text
from napari_isdnet.widgets._notify import notify_info
from napari_isdnet.widgets._segment_layers import opened


class Exchanging(Flying):
    """Asks for a file, and reads or writes it as a job."""

    _ended = Signal(str)

    def _connect_files(self) -> None:
        # From the thread that does the work: closing the annotation cuts it off and hears nothing of it any more.
        self._ended.connect(notify_info, Qt.ConnectionType.QueuedConnection)
        self.import_button.clicked.connect(self._choose_import)
        for kind, (text, tip, _) in exchange.EXPORTS.items():
            self.export_action(kind, text, tip, lambda kind=kind: self._choose_export(kind))  # type: ignore[misc]
        self.export_menu.addSeparator()
        tip = "The line that writes the outlines from a shell; with another ending it writes a label file"
        self.export_action("command", "Copy as command", tip, self.copy_command)

    def _save_editing(self) -> None:
        raise NotImplementedError

    def _choose_import(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Import annotations", "", exchange.IMPORT_FILTER)
        if not path:
            return
        if exchange.holds_outlines(Path(path)):
            self.bar.run(exchange.look(Path(path)), on_result=partial(self._ask_outlines, Path(path)), title="Reading")
            return
        kinds = list(exchange.VALUES)
        text, good = QInputDialog.getItem(self, "Import labels", "What do the values mean?", kinds, 0, False)
        if good:
            self.import_file(Path(path), exchange.VALUES[text])

    def _ask_outlines(self, path: Path, layers: dict[str, tuple[str, ...]]) -> None:
        """Ask for what the file leaves open, and import it."""
        layer, attribute = next(iter(layers), ""), None
        if len(layers) > 1:
            question = f"Which layer of {path.name}?"
            layer, good = QInputDialog.getItem(self, "Import outlines", question, list(layers), 0, False)
            if not good:
                return
        if attributes := layers.get(layer, ()):
            none = f"(none of them: paint all as '{self._default_class()}')"
            question = "Which attribute holds the class of a shape?"
            found, good = QInputDialog.getItem(self, "Import outlines", question, [*attributes, none], 0, False)
            if not good:
                return
            attribute = None if found == none else found
        self.import_file(path, layer=layer or None, attribute=attribute)

    def _default_class(self) -> str:
        classes = self.controller.store.classes
        return classes[self.controller.class_index].name if classes else "imported"

    def import_file(
        self, path: Path, values: str = "auto", layer: str | None = None, attribute: str | None = None
    ) -> None:
        """Paint what a file holds, of outlines a ``layer`` with the class in an ``attribute``; one step to undo."""
        self._save_editing()
        default = self._default_class()
        reference = opened(self.image_layer)[0].georeference

        def done(_: str = "") -> None:
            assert self.canvas is not None
            self.controller.edit(lambda _store: None)  # counts
            self.canvas.layer.refresh(extent=False)

        cut = f"The import of {path.name} was cancelled; what it had painted until then is one step to undo."
        work = self._watched(
            lambda store: exchange.bring_in(store, path, values, default, reference, layer, attribute), cut
        )
        self.bar.run(work, on_result=done, on_cancel=done, title="Importing")

    def _watched(
        self, work: Callable[[AnnotationStore], Generator[Progress, None, str]], cut: str
    ) -> Callable[[], Generator[Progress, None, str]]:
        controller, say = self.controller, self._ended.emit
        return lambda: exchange.Watched(controller.run(work), say, cut)

    def _choose_export(self, kind: str) -> None:
        text, _, suffix = exchange.EXPORTS[kind]
        folder = self.controller.store.folder
        start = folder.parent / (folder.name.removesuffix(ENDING) + "_annotation" + suffix)
        path, _ = QFileDialog.getSaveFileName(self, text.rstrip("…"), str(start), f"*{suffix}")
        if path:
            self.export_file(Path(path if path.endswith(suffix) else path + suffix), kind)

    def copy_command(self) -> None:
        """Put the command line that exports the annotation on the clipboard."""
        folder = self.controller.store.folder
        name = f"{folder.name.removesuffix(ENDING)}_annotation.geojson"
        text = shell_line(["napari-isdnet", "annotation", "export", str(folder), "--output", name])
        copy_text(self.export_button, text)

    def export_file(self, path: Path, kind: str) -> None:
        """Write the annotation to a file of ``kind`` ('geojson', 'geotiff', 'ome-tiff' or 'ome-zarr')."""
        self._save_editing()
        source, _, _ = opened(self.image_layer)
        cut = f"The export was cancelled: {path.name} was not written."
        self.bar.run(self._watched(lambda store: exchange.write_out(store, path, kind, source), cut), title="Exporting")
