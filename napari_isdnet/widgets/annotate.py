"""The Annotate dock: classes and tools for painting on an image of any size, and where to paint next."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, Signal

from napari_isdnet.annotation.classlist import PLACEHOLDERS
from napari_isdnet.exceptions import InputError
from napari_isdnet.progress import Progress
from napari_isdnet.widgets import _projects
from napari_isdnet.widgets._annotate_controller import PATIENCE_SECONDS, AnnotateController
from napari_isdnet.widgets._annotate_layer import AnnotationLayer, Prediction
from napari_isdnet.widgets._annotate_list import ListingClasses
from napari_isdnet.widgets._controls import fill_with, images_of
from napari_isdnet.widgets._edit_window import EditWindow, window_to_edit
from napari_isdnet.widgets._image import ANNOTATION, EDITED, METADATA
from napari_isdnet.widgets._job import JobBar, end_with_dock, stop_with, timer
from napari_isdnet.widgets._lazy import real_viewer, watch
from napari_isdnet.widgets._notify import notify_error
from napari_isdnet.widgets._replaced import Replaced
from napari_isdnet.widgets._segment_layers import CLASSES, is_of_another, opened, placement, visible_window
from napari_isdnet.window import Window

NEEDED = (
    ("pandas", "DataFrame"), ("skimage.color", "luv2rgb"), ("skimage.segmentation", "slic")
)  # fmt: skip
"""What napari's labels layer and superpixels import (scikit-image by use) the first time."""


def _import_ahead() -> Generator[Progress, None, None]:
    """Import what the first Start and the first superpixel would hold the window for."""
    for module, name in NEEDED:
        yield Progress(0, 1, "Getting ready")
        getattr(import_module(module), name)


class AnnotateWidget(ListingClasses):
    """Controls over one annotation; ``controller`` holds its state. ``opened``: a project was opened."""

    opened = Signal(object)
    _changed = Signal(object, bool)
    _failed = Signal(object)
    _closed = Signal(object)

    def __init__(self, napari_viewer: Any) -> None:  # napari passes the viewer by this name
        super().__init__()
        viewer = real_viewer(napari_viewer)
        self.viewer = viewer
        self.controller = AnnotateController(self._changed.emit, self._failed.emit, self._closed.emit)
        self.canvas: AnnotationLayer | None = None
        self._edited: list[EditWindow] = []  # at most one; a list, since it outlives the widget's C++ side
        self.image_layer: Any = None
        self._replaced = Replaced(self, self._pixels_replaced)
        self._unwritten = 0  # annotations that were closed and are still being written
        self._timer = timer(self, 150, self.controller.tick)
        watch(viewer)
        self._connect()
        self._list_layers()
        self._ahead = JobBar(self, "annotate_ahead", unseen=True)
        self._ahead.run(_import_ahead, on_error=lambda _: None)  # said by what needs it
        controller, edited = self.controller, self._edited

        def gone() -> None:
            controller.mute()  # what is still painted and written tells nobody
            try:
                for window in edited:
                    window.end()
            finally:
                controller.close_project()

        end_with_dock(self, self.stop)
        stop_with(self, gone)

    @property
    def editing(self) -> EditWindow | None:
        """The edit window, where one is open."""
        return self._edited[0] if self._edited else None

    # -- wiring ---------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        self._changed.connect(self._show_change, Qt.ConnectionType.QueuedConnection)
        self._failed.connect(self._show_failure, Qt.ConnectionType.QueuedConnection)
        self._closed.connect(self._show_closed, Qt.ConnectionType.QueuedConnection)
        for event in (self.viewer.layers.events.inserted, self.viewer.layers.events.removed):
            event.connect(self._list_layers)
        self.viewer.layers.events.removed.connect(self._layer_removed)
        self.viewer.camera.events.zoom.connect(self._show_size)
        self.start_button.clicked.connect(lambda: self.start())
        self.classes.picked.connect(self._pick)
        self._connect_classes()
        for tool, button in self.tool_buttons.items():
            button.clicked.connect(lambda _=False, tool=tool: self.choose(tool=tool))
        self.size_box.setValue(self.controller.size)
        self.size_slider.setValue(self.controller.size)
        self.size_box.valueChanged.connect(lambda value: self.choose(size=value))
        self.size_slider.valueChanged.connect(lambda value: self.choose(size=value))
        self.method.currentTextChanged.connect(self._choose_method)
        self.undo_button.clicked.connect(lambda: self._step("undo"))
        self.redo_button.clicked.connect(lambda: self._step("redo"))
        self.next_button.clicked.connect(lambda: self.next_region())
        self.edit_button.clicked.connect(self._toggle_editing)
        self._connect_files()

    def _list_layers(self, event: Any = None) -> None:  # noqa: ARG002
        from napari.layers import Labels

        ours = None if self.canvas is None else self.canvas.layer
        # An uncertainty map that was opened from a file is known by its name only.
        images = [x for x in images_of(self.viewer) if "uncertain" not in x.name.lower()]
        if ours is not None and self.image_layer not in images:
            images.append(self.image_layer)  # closed, but still what is annotated
        fill_with(self.image, images)
        labels = [x for x in self.viewer.layers if isinstance(x, Labels) and x.ndim == 2 and not _is_painted(x)]
        if ours is not None:
            labels = [x for x in labels if not is_of_another(self.viewer, x, self.image_layer)]
        fill_with(self.prediction, labels)
        self.start_button.setEnabled(ours is not None or bool(images))

    def _layer_removed(self, event: Any) -> None:
        if self.editing is not None and event.value is self.editing.layer:
            self._stop_editing()
        elif self.canvas is not None and event.value is self.canvas.layer:
            self.stop()

    # -- the project ----------------------------------------------------------------------------------------------

    def start(self, folder: Path | None = None) -> None:
        """Open, or begin, the annotation of the chosen image."""
        layer = self.image.currentData()
        if layer is None:
            notify_error(InputError("There is no image to annotate yet; load one first."))
            return
        self.stop()
        try:
            source, policy, _ = opened(layer)
            _projects.check_not_painted(source, folder)
            self.controller.open(source, self._first_classes(), folder, policy)
        except InputError as error:
            notify_error(error)
            return
        self.image_layer = layer
        self._replaced.follow(layer)
        _projects.before_training(self.controller.project, self._save_editing, self.controller.wait)
        self.controller.class_index = 0
        self.other.setText(self.controller.other_image(source))
        self.other.setVisible(bool(self.other.text()))
        self.canvas = AnnotationLayer(
            self.viewer, self.controller, f"{source.name} annotation", lambda: source, self._prediction, self.choose,
            **placement(layer),
        )  # fmt: skip
        for key, action in (("Control-Z", "undo"), ("Control-Shift-Z", "redo"), ("N", "")):
            self.viewer.bind_key(key, lambda _viewer, action=action: self._key(action), overwrite=True)
        self.viewer.layers.selection.events.active.connect(self._show_waiting)
        self.canvas.layer.bind_key("N", lambda _layer: self.next_region(), overwrite=True)
        self._list_layers()
        self.hint.hide()
        self.body.show()
        self.start_button.setText("Close")
        self.start_button.clicked.disconnect()
        self.start_button.clicked.connect(self.stop)
        self.image.setEnabled(False)
        self._timer.start()
        self._show_classes()
        self.choose(tool="brush" if self.controller.store.classes else "pan")
        self.opened.emit(self.controller.project)

    def _pixels_replaced(self) -> None:
        """Of the image: strokes, superpixels and the places to go to are those of the pixels before."""
        name = self.image_layer.name
        self.other.setText(
            f"'{name}' has other pixels now, and this annotation is of those before: press Close and Start to annotate"
            " what is there now."
        )
        self.other.show()

    def _first_classes(self) -> Sequence[Any]:
        found = self._prediction()
        return found.classes if found is not None and found.classes else PLACEHOLDERS

    def stop(self, *_: Any) -> None:
        """Save and close the annotation; its layer goes."""
        if self.canvas is None:
            return
        self._stop_editing()
        self._replaced.follow()
        self._timer.stop()
        self.bar.stop()
        canvas, self.canvas = self.canvas, None
        self.viewer.layers.selection.events.active.disconnect(self._show_waiting)
        self.waiting.hide()
        for key in ("Control-Z", "Control-Shift-Z", "N"):
            self.viewer.bind_key(key, None, overwrite=True)
        canvas.close()
        self._unwritten += 1
        self.writing.setVisible(not self.controller.close_project() or self._unwritten > 1)
        self.body.hide()
        self.hint.show()
        self.image.setEnabled(True)
        self.start_button.setText("Start")
        self.start_button.clicked.disconnect()
        self.start_button.clicked.connect(lambda: self.start())
        self._places = None
        self._visited.clear()
        self.reason.hide()
        self._list_layers()

    def _show_closed(self, error: Exception | None) -> None:
        self._unwritten -= 1
        self.writing.setVisible(self._unwritten > 0)
        if error is not None:
            notify_error(error)

    def _prediction(self) -> Prediction | None:
        layer = self.prediction.currentData()
        if layer is None:
            return None
        return Prediction(list(layer.data) if layer.multiscale else [layer.data], layer.metadata.get(CLASSES), layer)

    # -- choosing -------------------------------------------------------------------------------------------------

    def choose(self, tool: str | None = None, size: int | None = None, key: str | None = None) -> None:
        """Take a tool, a size in screen pixels, or the class that has ``key``."""
        if tool is not None:
            self.controller.tool = tool
            self.tool_buttons[tool].setChecked(True)
            if self.canvas is not None:
                self.canvas.take_tool()
            self._show_waiting()
        if size is not None:
            self.controller.size = max(1, min(size, self.size_box.maximum()))
            for control in (self.size_box, self.size_slider):
                control.blockSignals(True)
                control.setValue(self.controller.size)
                control.blockSignals(False)
            if self.canvas is not None:
                self.canvas.update_cursor()
            self._show_size()
        if key is not None and self.canvas is not None:
            keys = [c.shortcut for c in self.controller.store.class_list]
            if key in keys:
                self.classes.selectRow(keys.index(key))

    def _show_waiting(self, *_: Any) -> None:
        """With another layer selected napari hands the mouse to that: say why the brush does nothing."""
        if self.canvas is None:
            return
        active = self.viewer.layers.selection.active
        idle = self.controller.tool != "pan" and self.editing is None and active is not self.canvas.layer
        chosen = "no layer" if active is None else f"'{active.name}'"
        self.waiting.setText(f"Painting rests while {chosen} is selected: press a tool, or select the annotation.")
        self.waiting.setVisible(idle)

    def _choose_method(self, method: str) -> None:
        self.controller.superpixel_method = method

    def _pick(self, index: int) -> None:
        self.controller.class_index = index
        if self.editing is not None:
            self.editing.layer.selected_label = index + 1
        if self.controller.tool in ("eraser", "pan"):
            self.choose(tool="brush")

    # -- what changed ---------------------------------------------------------------------------------------------

    def _show_change(self, dirty: list[Window], idle: bool) -> None:
        if self.canvas is None or self.controller.project is None:  # told after the end
            return
        self.canvas.changed(dirty, idle)
        if self.editing is not None:
            self.editing.changed(dirty, idle)
        if idle:
            self._show_classes()

    def _show_classes(self) -> None:
        store, canvas = self.controller.store, self.canvas
        assert canvas is not None
        classes = store.class_list
        self.controller.class_index = max(0, min(self.controller.class_index, len(classes) - 1))
        if self.classes.shown_classes != classes:
            canvas.recolor()
            if self.editing is not None:
                self.editing.recolor()
        self.classes.show_classes(classes, self.controller.counts, self.controller.class_index)
        self.undo_button.setEnabled(self.controller.can_undo)
        self.redo_button.setEnabled(self.controller.can_redo)
        painted = sum(self.controller.counts)
        share = painted / (store.shape[0] * store.shape[1])
        self.status.setText(f"{painted:,} pixels painted ({share:.2%}) · saved in {store.folder.name}")
        self.status.setToolTip(f"Saved as you paint, in {store.folder}")
        self._show_size()

    def _show_size(self, *_: Any) -> None:
        if self.canvas is not None:
            down, across = (f"{2 * radius:,.0f}" for radius in self.canvas.radius)
            wide = across if down == across else f"{across} x {down}"
            self.size_note.setText(f"pixels of the screen = {wide} of the image")

    def _show_failure(self, error: Exception) -> None:
        notify_error(error)
        self.classes.refill()
        if self.canvas is not None:
            self.canvas.layer.refresh(extent=False, thumbnail=False, highlight=False)

    # -- steps and the edit window ----------------------------------------------------------------------------------

    def _key(self, action: str) -> None:
        if self.canvas is not None:
            self._step(action) if action else self.next_region()

    def _step(self, action: str) -> None:
        self._save_editing()
        (self.controller.undo if action == "undo" else self.controller.redo)()

    def _save_editing(self) -> None:
        if self.editing is not None:
            self.editing.flush()

    def _toggle_editing(self, on: bool) -> None:
        if not on:
            self._stop_editing()
            return
        if self.canvas is None:
            return
        try:
            if not self.controller.wait(PATIENCE_SECONDS):
                raise InputError("What was painted last is still being stored; open the edit window in a moment.")
            window = window_to_edit(visible_window(self.viewer, self.image_layer), self.controller.store.shape)
        except InputError as error:
            notify_error(error)
            self.edit_button.setChecked(False)
            return
        inserted = self.viewer.layers.events.inserted
        inserted.connect(_mark_as_edited, position="first")
        try:
            self._edited.append(EditWindow(self.viewer, self.controller, window, self.canvas.layer))
        finally:
            inserted.disconnect(_mark_as_edited)
        self.canvas.layer.visible = False
        self.edit_button.setText("Done editing")
        self._show_waiting()

    def _stop_editing(self) -> None:
        if self.editing is None:
            return
        self._edited.pop().close()
        self.edit_button.setChecked(False)
        self.edit_button.setText("Edit window")
        if self.canvas is not None and self.canvas.layer in self.viewer.layers:
            self.controller.wait(PATIENCE_SECONDS)
            self.canvas.layer.visible = True
            self.canvas.take_tool()


def _mark_as_edited(event: Any) -> None:
    """Before any list of layers hears of an edit window: it is part of an annotation, and no map to choose."""
    event.value.metadata[METADATA] = {EDITED: True}


def _is_painted(layer: Any) -> bool:
    """True for an annotation and for a part of one that is being edited."""
    return bool({ANNOTATION, EDITED} & set(layer.metadata.get(METADATA, {})))
