"""What the Segment dock knows and does, without Qt: settings, live pyramid, areas, colours, the command line."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from napari_isdnet.classes import IGNORE_INDEX, ClassInfo
from napari_isdnet.engine.live import PredictionPyramid
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import ImageSource, PixelSize
from napari_isdnet.progress import Progress
from napari_isdnet.window import Window

REGIONS = ("visible", "drawn", "whole")
CONTEXTS = ("whole", "window")
Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class LiveWork:
    """How a model segments windows of one image: the fixed grid's core size and the function for one window."""

    core: tuple[int, int]
    compute: Callable[[Window], Labels]


class Engine(Protocol):
    """What the dock needs of the engine; see :class:`napari_isdnet.widgets._segment_engine.LocalEngine`."""

    def models(self) -> Sequence[str]:
        """Names of the models that are there."""

    def classes(self, model: str) -> tuple[ClassInfo, ...]:
        """Classes of a model, from its header (fast)."""

    def devices(self) -> Sequence[tuple[str, str]]:
        """(key, text with name and free memory) of each device."""

    def live(self, source: ImageSource, model: str, device: str, policy: Any) -> LiveWork:
        """Prepare to segment windows; may be slow (loads the network)."""

    def segment(
        self, source: ImageSource, model: str, output: Path, settings: Mapping[str, Any]
    ) -> Generator[Progress, None, Any]:
        """Segment to files; the generator returns a result with ``labels``: the path of the class map."""


@dataclass(frozen=True)
class Settings:
    """What the user chose."""

    model: str = ""
    context: str = "whole"
    region: str = "visible"
    device: str = "auto"
    output: Path = Path("results")
    format: str = "ome-zarr"
    contrast: str = "auto"
    memory: float | None = None

    def __post_init__(self) -> None:
        if self.context not in CONTEXTS or self.region not in REGIONS:
            raise InputError(
                f"Context is one of {', '.join(CONTEXTS)} and region one of {', '.join(REGIONS)}; "
                f"got '{self.context}' and '{self.region}'."
            )


def region_window(kind: str, shape: tuple[int, int], view: Window, drawn: Window | None) -> Window:
    """The level-0 window that is to be segmented, always inside the image."""
    if kind == "whole":
        return Window.whole(shape)
    if kind == "drawn" and drawn is None:
        raise InputError("No region is drawn; draw a rectangle in a Shapes layer, or choose the visible region.")
    window = (view if kind == "visible" or drawn is None else drawn).clipped(shape)
    if window.empty:
        raise InputError(f"The {kind} region lies outside the image; move the view or draw the region on the image.")
    return window


def command(image: str, settings: Settings, roi: Window | None = None) -> str:
    """The ``napari-isdnet segment`` line that does the same from a shell."""
    parts = ["napari-isdnet", "segment", image, "--output", str(settings.output), "--model", settings.model]
    parts += ["--context", settings.context]
    if roi is not None:
        parts += ["--roi", f"{roi.row},{roi.column},{roi.height},{roi.width}"]
    if settings.format != "ome-zarr":
        parts += ["--format", settings.format]
    if settings.device != "auto":
        parts += ["--device", settings.device]
    if settings.contrast != "auto":
        parts += ["--contrast", settings.contrast]
    if settings.memory is not None:
        parts += ["--memory", f"{settings.memory:g}"]
    return shlex.join(parts)


def color_table(
    classes: Sequence[ClassInfo], hidden: frozenset[int] = frozenset()
) -> dict[int | None, tuple[float, float, float, float]]:
    """Colours by class index for napari's direct colour map; hidden classes, 255 and unknown values are transparent."""
    clear = (0.0, 0.0, 0.0, 0.0)
    table: dict[int | None, tuple[float, float, float, float]] = {None: clear, IGNORE_INDEX: clear}
    for index, item in enumerate(classes):
        red, green, blue = (value / 255 for value in item.color)
        table[index] = clear if index in hidden else (red, green, blue, 1.0)
    return table


def area_text(pixels: float, size: PixelSize | None) -> str:
    """An area in the unit that fits, or in pixels where the pixel size is not a length."""
    metres = size.metres if size is not None else None
    if metres is None:
        return f"{pixels:,.0f} px"
    area = pixels * metres**2
    for unit, scale in (("km²", 1e6), ("ha", 1e4), ("m²", 1.0), ("mm²", 1e-6)):
        if area >= scale or unit == "mm²":
            return f"{area / scale:,.4g} {unit}" if area / scale < 1e4 else f"{area / scale:,.0f} {unit}"
    return ""  # pragma: no cover - the loop always returns


class ClassAreas:
    """Pixels per class over the windows that are done; a window that is computed again counts once. Thread-safe."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._windows: dict[Window, npt.NDArray[np.int64]] = {}
        self._total = np.zeros(count, np.int64)
        self._lock = threading.Lock()

    def add(self, window: Window, labels: Labels) -> None:
        """Count a finished window."""
        counts = np.bincount(labels.ravel(), minlength=256)[: self._count]
        with self._lock:
            self._total += counts - self._windows.get(window, 0)
            self._windows[window] = counts

    def pixels(self) -> list[int]:
        """Pixels of each class so far."""
        with self._lock:
            return [int(value) for value in self._total]


class SegmentController:
    """The state behind the Segment dock. ``on_error`` is called from a worker thread."""

    def __init__(self, engine: Engine, on_error: Callable[[Exception], None] | None = None) -> None:
        self.engine = engine
        self.classes: tuple[ClassInfo, ...] = ()
        self.hidden: set[int] = set()
        self.live: PredictionPyramid | None = None
        self.areas = ClassAreas(0)
        self._on_error = on_error
        self._told = False

    def choose_model(self, model: str) -> tuple[ClassInfo, ...]:
        """Read a model's classes; all are visible again."""
        self.classes = self.engine.classes(model)
        self.hidden.clear()
        return self.classes

    def colors(self) -> dict[int | None, tuple[float, float, float, float]]:
        """Colour table of the classes that are shown."""
        return color_table(self.classes, frozenset(self.hidden))

    def show_class(self, index: int, shown: bool) -> None:
        """Show or hide a class."""
        (self.hidden.discard if shown else self.hidden.add)(index)

    def prepare_live(self, source: ImageSource, settings: Settings, policy: Any) -> Generator[Progress, None, LiveWork]:
        """Load the network, as a job."""
        yield Progress(0, 1, "Loading the model")
        work = self.engine.live(source, settings.model, settings.device, policy)
        yield Progress(1, 1, "Loading the model")
        return work

    def start_live(self, source: ImageSource, work: LiveWork, region: Window, everything: bool) -> PredictionPyramid:
        """The pyramid that segments what is looked at; the one before is closed."""
        self.stop_live()
        self.areas = ClassAreas(len(self.classes))
        self._told = False
        self.live = PredictionPyramid(
            source.shape, work.core, work.compute, everything=everything, within=region,
            on_window=self.areas.add, on_error=self._failed,
        )  # fmt: skip
        return self.live

    def _failed(self, _: Window, error: Exception) -> None:
        # One message for a run of windows that fail for one reason, not hundreds.
        if not self._told and self._on_error is not None:
            self._told = True
            self._on_error(error)

    def stop_live(self) -> None:
        """End the live pyramid's threads."""
        if self.live is not None:
            self.live.close()
            self.live = None
