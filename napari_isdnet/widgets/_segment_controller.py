"""What the Segment dock knows and does, without Qt: settings, live pyramid, areas, colours, the command line."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from napari_isdnet.classes import IGNORE_INDEX, ClassInfo
from napari_isdnet.engine.live import PredictionPyramid
from napari_isdnet.engine.viewqueue import close_later
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import ImageSource, PixelSize
from napari_isdnet.progress import Progress
from napari_isdnet.system import command_line
from napari_isdnet.widgets._engine import LiveWork, ModelAbout
from napari_isdnet.window import Window

if TYPE_CHECKING:
    from napari_isdnet.engine.segment import SegmentResult
    from napari_isdnet.io.store import LabelStore

REGIONS = ("visible", "drawn", "whole")
CONTEXTS = ("whole", "window")
Labels = npt.NDArray[np.uint8]


class Engine(Protocol):
    """What the dock needs of the engine; see :class:`napari_isdnet.widgets._engine.LocalEngine`."""

    def models(self) -> Sequence[str]:
        """Names of the models that are there."""

    def about(self, model: str) -> ModelAbout:
        """What a model is, from its header (fast)."""

    def devices(self) -> Sequence[tuple[str, str]]:
        """(key, text with name and free memory) of each device."""

    def live(self, source: ImageSource, model: str, device: str, policy: Any, orientations: int = 1) -> LiveWork:
        """Prepare to segment windows; may be slow (loads the network)."""

    def exact(
        self, source: ImageSource, model: str, device: str, policy: Any, memory: float | None, orientations: int = 1
    ) -> Generator[Progress, None, LiveWork]:
        """Prepare to segment windows in the context of the whole image; slow."""

    def segment(
        self, source: ImageSource, model: str, output: Path, settings: Mapping[str, Any]
    ) -> Generator[Progress, None, SegmentResult]:
        """Segment to files."""


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
    polygons: bool = False
    geopackage: bool = False
    probabilities: bool = False
    uncertainty: bool = False
    overwrite: bool = False
    orientations: int = 1
    channels: tuple[int, ...] | None = None
    simplify: float = 0.0
    min_area: int = 1

    def __post_init__(self) -> None:
        if self.context not in CONTEXTS or self.region not in REGIONS:
            raise InputError(
                f"Context is one of {', '.join(CONTEXTS)} and region one of {', '.join(REGIONS)}; "
                f"got '{self.context}' and '{self.region}'."
            )

    def options(self, roi: Window | None) -> dict[str, Any]:
        """Keywords of the engine's ``segment()``; the same names as the command line's."""
        return {
            "context": self.context,
            "roi": roi,
            "formats": (self.format,),
            "device": self.device,
            "contrast": self.contrast,
            "channels": self.channels,
            "memory": self.memory,
            "polygons": self.polygons,
            "geopackage": self.geopackage,
            "simplify": self.simplify,
            "min_area": self.min_area,
            "probabilities": self.probabilities,
            "uncertainty": self.uncertainty,
            "overwrite": self.overwrite,
            "orientations": self.orientations,
        }


@dataclass(frozen=True)
class Finished:
    """A job's result, opened: ``uncertainty`` only where it was asked for."""

    result: SegmentResult
    labels: LabelStore
    uncertainty: LabelStore | None


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
    first = {"output": settings.output, "model": settings.model, "context": settings.context}
    names = ["format", "device", "contrast", "channels", "orientations", "memory"]
    names += ["simplify", "min_area"] if settings.polygons or settings.geopackage else []
    names += ["polygons", "geopackage", "probabilities", "uncertainty", "overwrite"]
    chosen, usual = ({name: getattr(where, name) for name in names} for where in (settings, Settings))
    options = {**first, "roi": None if roi is None else roi.text, **chosen}
    return command_line(["napari-isdnet", "segment", image], options, usual)


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
        self.about: ModelAbout | None = None
        self.classes: tuple[ClassInfo, ...] = ()
        self.listed: tuple[ClassInfo, ...] = ()  # the classes that one shows and hides: the model's, or a result's
        self.hidden: set[int] = set()
        self.live: PredictionPyramid | None = None
        self.areas = ClassAreas(0)
        self.provisional = False
        self._everything = False
        self._works: list[LiveWork] = []
        self.on_error = on_error
        self._told = False

    def choose_model(self, about: ModelAbout) -> None:
        """Take a model's classes; all are visible again."""
        self.about, self.classes = about, about.classes
        self.listed = ()
        self.list_classes(about.classes)

    def list_classes(self, classes: Sequence[ClassInfo]) -> bool:
        """Say which classes one shows and hides; True, and all are visible again, where they are others than before."""
        if tuple(classes) == self.listed:
            return False
        self.listed = tuple(classes)
        self.hidden.clear()
        return True

    def colors(self, classes: Sequence[ClassInfo] | None = None) -> dict[int | None, tuple[float, float, float, float]]:
        """Colour table of ``classes`` (default: the model's); those are clear that are hidden among the listed."""
        classes = self.classes if classes is None else tuple(classes)
        return color_table(classes, frozenset(self.hidden if classes == self.listed else ()))

    def show_class(self, index: int, shown: bool) -> None:
        """Show or hide a class."""
        (self.hidden.discard if shown else self.hidden.add)(index)

    def prepare_live(self, source: ImageSource, settings: Settings, policy: Any) -> Generator[Progress, None, LiveWork]:
        """Load the network, as a job."""
        yield Progress(0, 1, "Loading the model")
        # In the context of the whole image this answer is provisional: it should come soon.
        count = settings.orientations if settings.context == "window" else 1
        return self.engine.live(source, settings.model, settings.device, policy, count)

    def start_live(
        self, source: ImageSource, work: LiveWork, region: Window, everything: bool, provisional: bool = False
    ) -> PredictionPyramid:
        """The pyramid that segments what is looked at; the one before is closed.

        ``everything``: go on with the rest of ``region`` after what is looked at. ``provisional``: a better ``work``
        follows (:meth:`better`), so only what is looked at is done until then.
        """
        self.stop_live()
        self.areas = ClassAreas(len(self.classes))
        self._told = False
        self._works, self.provisional, self._everything = [work], provisional, everything
        self.live = PredictionPyramid(
            source.shape, work.core, work.compute, everything=everything and not provisional, within=region,
            on_window=self.areas.add, on_error=self._failed,
        )  # fmt: skip
        return self.live

    def prepare_exact(
        self, source: ImageSource, settings: Settings, policy: Any
    ) -> Generator[Progress, None, LiveWork]:
        """The means of the whole image, as a job; what is looked at comes first."""
        steps = self.engine.exact(
            source, settings.model, settings.device, policy, settings.memory, settings.orientations
        )
        live, step = self.live, Progress(0, 1, "Whole image")
        try:
            while True:
                while live is not None and live is self.live and live.pending:
                    yield replace(step, stage="What you see comes first", seconds_left=None)
                    time.sleep(0.05)
                step = next(steps)
                yield replace(step, stage=f"Whole image: {step.stage}")
        except StopIteration as stop:
            work: LiveWork = stop.value
            return work
        finally:
            steps.close()

    def settle(self) -> None:
        """The exact answer does not come: go on window by window, provisional as it is."""
        if self.live is not None:
            self.live.go_on(self._everything)

    def better(self, work: LiveWork) -> None:
        """Answer exactly from now on; the provisional answer stays where it is until it is replaced."""
        self._works.append(work)
        if self.live is not None:
            self.provisional = False
            self.live.replace(work.compute, self._everything)

    def replace(self, work: LiveWork) -> None:
        """Answer by another network of the same classes; what is known stays until it is computed anew."""
        # A window may still be computed by the network before: it is closed at the next change, or at the end.
        for old in self._works[:-1]:
            old.close()
        self._works = [*self._works[-1:], work]
        if self.live is not None:
            self.live.replace(work.compute)

    def job(self, source: ImageSource, settings: Settings, roi: Window | None) -> Generator[Progress, None, Finished]:
        """Segment to files and open what was written."""
        from napari_isdnet.io.store import LabelStore

        result = yield from self.engine.segment(source, settings.model, settings.output, settings.options(roi))
        folder = settings.output / f"{source.name}.job"
        labels = LabelStore.open(folder / f"{source.name}.ome.zarr")
        uncertain = folder / f"{source.name}_uncertainty.ome.zarr"
        return Finished(result, labels, LabelStore.open(uncertain) if settings.uncertainty else None)

    def _failed(self, _: Window, error: Exception) -> None:
        # One message for a run of windows that fail for one reason, not hundreds.
        if not self._told and self.on_error is not None:
            self._told = True
            self.on_error(error)

    def stop_live(self) -> None:
        """End the live pyramid: at once for whoever looks, after the window at hand for its thread."""
        live, self.live = self.live, None
        works, self._works = self._works, []
        if live is not None:
            live.end()  # its layer stays, and who reads it must not ask a network that is being closed
        closers = [*([] if live is None else [live.close]), *(work.close for work in works)]
        if closers:
            close_later(*closers)
