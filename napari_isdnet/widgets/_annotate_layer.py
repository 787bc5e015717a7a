"""The annotation as a napari layer that is painted at any zoom: mouse and keys here, what they do in the controller."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

from napari_isdnet.annotation.level import AnnotationLevel
from napari_isdnet.classes import ClassInfo
from napari_isdnet.exceptions import InputError
from napari_isdnet.widgets._annotate_controller import AnnotateController
from napari_isdnet.widgets._annotate_preview import Preview
from napari_isdnet.widgets._annotate_regions import Placing
from napari_isdnet.widgets._image import ANNOTATION, METADATA
from napari_isdnet.widgets._notify import notify_error
from napari_isdnet.widgets._places import in_pixels, pixel_sides
from napari_isdnet.window import Window

Point = tuple[float, float]
LINE = 2.5
TOOL_KEYS = {
    "pan": "Z", "brush": "B", "eraser": "E", "polygon": "P", "lasso": "L", "superpixel": "S", "accept": "A"
}  # fmt: skip
HELP = ", ".join(["<1>-<9> class", *(f"<{key}> {tool}" for tool, key in TOOL_KEYS.items()), "<N> next region"])
_CURSORS = {"pan": "standard", "brush": "circle", "eraser": "circle"}


def annotation_colors(classes: Sequence[ClassInfo]) -> Any:
    """Colour map of annotation values: 0 and unknown values are transparent."""
    from napari.utils.colormaps import DirectLabelColormap

    clear = (0.0, 0.0, 0.0, 0.0)
    table: dict[int | None, tuple[float, ...]] = {None: clear, 0: clear}
    for value, item in enumerate(classes, start=1):
        table[value] = (*(c / 255 for c in item.color), 1.0)
    return DirectLabelColormap(color_dict=table)


class SharedLevel(AnnotationLevel):
    """A level whose copies, which napari's Duplicate makes, show the same annotation: it has one owner, its store."""

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedLevel:
        return self


class Prediction(NamedTuple):
    """What Accept takes regions from: a layer's arrays, finest first, its classes where it names them, and itself."""

    levels: Sequence[Any]
    classes: Sequence[ClassInfo] | None
    layer: Any


class AnnotationLayer:
    """One labels layer over the controller's store. ``image`` and ``prediction`` find the sources for one-click tools.

    ``choose(tool=..., size=..., key=...)`` is how keys reach the dock.
    """

    def __init__(
        self,
        viewer: Any,
        controller: AnnotateController,
        name: str,
        image: Callable[[], Any],
        prediction: Callable[[], Prediction | None],
        choose: Callable[..., None],
        **settings: Any,
    ) -> None:
        self.viewer, self.controller = viewer, controller
        self._image, self._prediction, self._choose = image, prediction, choose
        store = controller.store
        levels = [SharedLevel(store, level) for level in range(len(store.levels))]
        data: Any = levels if len(levels) > 1 else levels[0]
        self.layer = viewer.add_labels(
            data, name=name, multiscale=len(levels) > 1, opacity=0.6, colormap=annotation_colors(store.classes),
            metadata={METADATA: {ANNOTATION: str(store.folder)}}, **settings,
        )  # fmt: skip
        self.layer._level_materializer = None  # napari 0.9 keeps a copy of the coarsest level, which is painted here
        self.layer.editable = False  # by napari's tools: they would write into the slice only
        self.layer.help = HELP  # napari's own text names keys that are ours here
        viewer.help = HELP
        self.preview = Preview(self.layer, store)
        self.corners: list[Point] = []
        self._held: object | None = None
        """The drag that goes on, of those that napari still holds: it forgets none whose end another layer got."""
        self._resting = False
        self._dirty: dict[Window, None] = {}
        self.layer.mouse_drag_callbacks.append(self._drag)
        self.layer.mouse_move_callbacks.append(self._move)
        self.layer.mouse_double_click_callbacks.append(self._double_click)
        viewer.camera.events.zoom.connect(self.update_cursor)
        viewer.layers.selection.events.active.connect(self._left)
        self._bind_keys()

    # -- geometry -------------------------------------------------------------------------------------------------

    @property
    def zoom_out(self) -> float:
        """Level-0 pixels per pixel of the screen, along their shorter side."""
        return max(self._pixels_per_screen)

    @property
    def _pixels_per_screen(self) -> tuple[float, float]:
        """Level-0 pixels per pixel of the screen, down and across."""
        down, across = self.viewer.camera.zoom * pixel_sides(self.viewer, self.layer)
        return 1.0 / max(float(down), 1e-12), 1.0 / max(float(across), 1e-12)

    @property
    def radius(self) -> tuple[float, float]:
        """Radius of the brush in level-0 pixels, down and across, at this zoom: a circle on the screen."""
        down, across = (max(self.controller.size * pixels / 2, 0.5) for pixels in self._pixels_per_screen)
        return down, across

    def point(self, event: Any) -> Point:
        """Where the pointer is, (row, column) at level 0."""
        row, column = in_pixels(self.viewer, self.layer, event.position).tolist()
        return row, column

    # -- tools ----------------------------------------------------------------------------------------------------

    def take_tool(self) -> None:
        """Bring layer, cursor and panning in line with the controller's tool."""
        self.cancel()
        if self.layer in self.viewer.layers and self.controller.tool != "pan":
            self.viewer.layers.selection.active = self.layer
        self.layer.mouse_pan = self.controller.tool == "pan"
        self.update_cursor()

    def update_cursor(self, *_: Any) -> None:
        """A circle of the brush's size on the screen."""
        tool = "pan" if self._resting else self.controller.tool
        self.layer.cursor_size = self.controller.size / max(self.viewer.camera.zoom, 1e-12)
        self.layer.cursor = _CURSORS.get(tool, "cross")

    def _drag(self, _layer: Any, event: Any) -> Generator[None, None, None]:
        tool = self.controller.tool
        if tool == "pan" or self._resting or event.button != 1 or self.layer.mouse_pan:
            return
        erase = "Shift" in event.modifiers
        try:
            if not self.layer.visible:
                raise InputError(f"'{self.layer.name}' is hidden; show that layer to paint in it.")
            if self.viewer.dims.ndisplay != 2:
                raise InputError("An annotation is painted in the view of two dimensions; switch back to that first.")
            if tool in ("brush", "eraser"):
                yield from self._drag_brush(event, erase)
            elif tool == "lasso":
                yield from self._drag_lasso(event, erase)
            elif tool == "polygon":
                self.corners.append(self.point(event))
                self._rubber()
            else:
                self._one_click(tool, self.point(event), erase)
        except InputError as error:
            notify_error(error)

    def _drag_brush(self, event: Any, erase: bool) -> Generator[None, None, None]:
        last, radius = self.point(event), self.radius
        self.controller.press(last, radius, erase)
        value = 0 if erase else self.controller.value
        held = self._hold()
        try:
            self.preview.brush([last], radius, value)
            yield
            while held() and event.type == "mouse_move":
                here = self.point(event)
                self.preview.brush([last, here], radius, value)
                self.controller.move(here)
                last = here
                yield
            here = self.point(event)  # the pointer may have moved between its last report and the release
            if held() and here != last:
                self.preview.brush([last, here], radius, value)
                self.controller.move(here)
        finally:
            if held():
                self._let_go()

    def _drag_lasso(self, event: Any, erase: bool) -> Generator[None, None, None]:
        path = [self.point(event)]
        held = self._hold()
        yield
        while held() and event.type == "mouse_move":
            path.append(self.point(event))
            self.preview.grow(path, LINE, self.controller.value)
            yield
        if held():
            self._let_go()
            self.controller.outline(path, erase)

    def _hold(self) -> Callable[[], bool]:
        """Begin a drag; the result is false once another one has begun, or this one was ended from elsewhere."""
        mine, stroke = object(), self.controller.dragging
        self._held = mine
        return lambda: self._held is mine and self.controller.dragging == stroke

    def _let_go(self) -> None:
        self._held = None
        self.preview.clear()
        self.controller.release()

    def _left(self, *_: Any) -> None:
        """Another layer gets the mouse, and with it the end of a drag: it ends here; an open loop is nothing."""
        if self._held is not None and self.viewer.layers.selection.active is not self.layer:
            self._let_go()

    def _one_click(self, tool: str, point: Point, erase: bool) -> None:
        if tool == "superpixel":
            self.controller.fill_superpixel(self._image(), point, self.zoom_out, erase)
            return
        found = self._prediction()
        if found is None:
            raise InputError("No prediction layer is chosen; segment the image first, or choose a labels layer.")
        # In the prediction's own pixels: of a part of the image, or of another resolution, it has others.
        placing = Placing.between(found.layer, self.layer)
        self.controller.accept(found.levels, found.classes, point, self.zoom_out, erase, placing)

    # -- polygon --------------------------------------------------------------------------------------------------

    def _move(self, _layer: Any, event: Any) -> None:
        if self.corners:
            self._rubber(self.point(event))

    def _rubber(self, *to: Point) -> None:
        path = [*self.corners, *to]
        self.preview.line([*path, path[0]] if len(path) > 2 else path, LINE, self.controller.value)

    def _double_click(self, _layer: Any, event: Any) -> None:
        if self.controller.tool == "polygon":
            self.finish("Shift" in event.modifiers)

    def finish(self, erase: bool = False) -> None:
        """Close and fill the polygon; where that is refused its corners stay."""
        try:
            self.controller.outline(self.corners, erase)
        except InputError as error:
            notify_error(error)
        else:
            self.cancel()

    def cancel(self) -> None:
        """Forget the polygon, or the loop that is being drawn; a stroke of the brush goes on."""
        self.corners = []
        if not self.controller.dragging:
            self._held = None
        self.preview.clear()

    def _step_back(self) -> None:
        if self.corners:
            self.corners.pop()
            self.preview.clear()
            if self.corners:
                self._rubber()

    # -- what changed -----------------------------------------------------------------------------------------------

    def changed(self, dirty: Sequence[Window], idle: bool) -> None:
        """The store holds more; it is shown once nothing is under way that it does not hold yet."""
        self._dirty.update(dict.fromkeys(dirty))
        if idle and self._dirty and not self.controller.dragging and not self.controller.pending:
            self.preview.show(list(self._dirty))
            self._dirty.clear()

    def recolor(self) -> None:
        """Take the class list's colours."""
        self.layer.colormap = annotation_colors(self.controller.store.classes)

    # -- keys -------------------------------------------------------------------------------------------------------

    def _bind_keys(self) -> None:
        def bind(key: str, action: Callable[[], Any]) -> None:
            self.layer.bind_key(key, lambda _layer: action(), overwrite=True)

        for tool, key in TOOL_KEYS.items():
            bind(key, lambda tool=tool: self._choose(tool=tool))  # type: ignore[misc]
        for key in "123456789":
            bind(key, lambda key=key: self._choose(key=key))  # type: ignore[misc]
        bind("[", lambda: self._choose(size=max(1, round(self.controller.size / 1.25 - 0.5))))
        bind("]", lambda: self._choose(size=round(self.controller.size * 1.25 + 0.5)))
        bind("Enter", self.finish)
        bind("Escape", self.cancel)
        bind("Backspace", self._step_back)
        bind("Control-Z", self.controller.undo)
        bind("Control-Shift-Z", self.controller.redo)
        self.layer.bind_key("Space", self._rest, overwrite=True)

    def _rest(self, _layer: Any) -> Generator[None, None, None]:
        """While held, the mouse moves the picture."""
        self._resting = True
        self.layer.mouse_pan = True
        self.update_cursor()
        yield
        self._resting = False
        self.layer.mouse_pan = self.controller.tool == "pan"
        self.update_cursor()

    def close(self) -> None:
        """Let go of the viewer; the layer goes too."""
        self._held = None
        self.viewer.layers.selection.events.active.disconnect(self._left)
        self.viewer.camera.events.zoom.disconnect(self.update_cursor)
        if self.layer in self.viewer.layers:
            self.viewer.layers.remove(self.layer)
