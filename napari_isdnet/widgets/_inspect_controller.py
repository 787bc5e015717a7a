"""What the Inspect dock knows and does, without Qt: opening a view of a network, pyramids, the same as a command."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_isdnet.classes import ClassInfo
from napari_isdnet.engine.feature_tiles import RenderPyramid
from napari_isdnet.engine.rendering import Basis, Rendering, paint
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import ImageSource
from napari_isdnet.progress import Progress
from napari_isdnet.system import command_line
from napari_isdnet.widgets._engine import map_folder
from napari_isdnet.window import Window

if TYPE_CHECKING:
    from napari_isdnet.engine.features import FeatureView
    from napari_isdnet.engine.job import Context


@dataclass(frozen=True)
class InspectSettings:
    """Which network looks at an image, and how: model name or path, context, device, memory budget (GiB)."""

    model: str
    context: Context = "whole"
    device: str = "auto"
    memory: float | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise InputError("No model is chosen; choose a model file first.")


@dataclass(frozen=True)
class Picked:
    """What was found at a pixel: class probabilities by branch, and the rendering of similarity to it."""

    pixel: tuple[int, int]
    opinions: dict[str, Any]
    similarity: Rendering
    attention: dict[str, Any]


class SharedView:
    """A view that is closed when its last holder lets go: the dock, and every layer that is still painted from it."""

    def __init__(self, view: FeatureView, classes: tuple[ClassInfo, ...], close: Callable[[], None]) -> None:
        self.view, self.classes, self._close = view, classes, close
        self._holders = 1
        self._lock = threading.Lock()

    def hold(self) -> SharedView:
        """One holder more."""
        with self._lock:
            self._holders += 1
        return self

    def release(self) -> None:
        """One holder less; the last one closes the view."""
        with self._lock:
            self._holders -= 1
            last = self._holders == 0
        if last:
            self._close()


def open_view(
    source: ImageSource, policy: Any, settings: InspectSettings, folder: Path
) -> Generator[Progress, None, SharedView]:
    """Load the network and find what has to be known of the whole image; a job. Spilled maps go to ``folder``."""
    from napari_isdnet.engine.device import choose, set_threads
    from napari_isdnet.engine.features import FeatureView
    from napari_isdnet.engine.job import job_header, load_means, means_key, save_means
    from napari_isdnet.engine.viewqueue import spare_core_threads
    from napari_isdnet.io.intensity import IntensityPolicy
    from napari_isdnet.model.checkpoint import header_of, load_model, model_hash

    yield Progress(0, 1, "Loading the model")
    placement = choose(settings.device)
    set_threads(spare_core_threads(most=1024))
    network = load_model(settings.model, training=True)
    policy = policy or IntensityPolicy.from_source(source)
    header = job_header(source, model_hash(network), placement, {"intensity": policy.to_dict(), "scale": 1.0})
    key = means_key(header)
    means = load_means(key) if settings.context == "whole" else None
    with ExitStack() as stack:  # files and memory are also released when the job is cancelled
        maps = map_folder(folder, stack)
        view = FeatureView(
            source, network, policy, placement, settings.context, memory=settings.memory, folder=maps, means=means
        )
        stack.callback(view.close)
        for step in view.prepare():
            yield Progress(step.done, step.total, f"Whole image: {step.stage}", step.window, step.seconds_left)
        if means is None and view.means is not None:
            save_means(key, view.means)
        return SharedView(view, header_of(network).classes, stack.pop_all().close)


def fit(shared: SharedView, name: str) -> Generator[Progress, None, Basis]:
    """Find the colours of a map; a job."""
    yield Progress(0, 1, "Finding the colours")
    return shared.view.basis(name)


def pick(shared: SharedView, name: str, row: int, column: int) -> Generator[Progress, None, Picked]:
    """Ask about a pixel; a job."""
    from napari_isdnet.engine.rendering import similar_to

    yield Progress(0, 1, "Asking the branches")
    view = shared.view
    opinions = view.opinions(row, column)
    yield Progress(0.5, 1, "Asking the branches")
    similarity = similar_to(view.vector(name, row, column), view.sample(name))
    return Picked((row, column), opinions, similarity, view.attention(row, column))


def pyramid(
    shared: SharedView,
    name: str,
    basis: Basis,
    rendering: Rendering,
    region: Window,
    on_error: Callable[[Exception], None] | None = None,
) -> tuple[RenderPyramid, tuple[float, float], tuple[float, float]]:
    """A rendered map of the level-0 ``region`` as a pyramid, the pixels a cell covers, and the first cell's centre."""
    info = shared.view.info(name)
    cells = info.extent.covering(region)

    def painted(window: Window) -> Any:
        return paint(shared.view.read(name, window), basis, rendering)

    unit = 256 if info.stride < 4 else 64 if info.stride < 32 else 32
    shared.hold()
    made = RenderPyramid(cells, painted, unit, on_error=on_error, on_close=shared.release)
    return made, info.extent.scale, info.extent.translate(cells)


def caption(rendering: Rendering, basis: Basis) -> str:
    """What the colours of a map mean, in a sentence."""
    if rendering.kind == "pca":
        shares = ", ".join(f"{share:.0%}" for share in basis.explained)
        return f"Red, green and blue hold {shares} of the variance; the same colours everywhere."
    if rendering.kind == "similarity":
        low, high = rendering.limits
        return f"Cosine with the picked pixel: black is {low:.2f} or less, bright is {high:.0f}."
    return f"{len(basis.order)} channels; contrast from the 1st to the 99th percentile of the image."


def opinion_rows(opinions: dict[str, Any], classes: tuple[ClassInfo, ...]) -> list[tuple[ClassInfo, dict[str, float]]]:
    """Classes with their probability by each branch, the whole network's most probable first."""
    order = np.argsort(-np.asarray(opinions["both"]), kind="stable")
    return [(classes[k], {branch: float(values[k]) for branch, values in opinions.items()}) for k in order]


def command(
    image: str,
    settings: InspectSettings,
    layer: str,
    roi: Window | None,
    contrast: str = "auto",
    channels: Sequence[int] | None = None,
) -> str:
    """The ``napari-isdnet features`` line that writes the same map from a shell."""
    options = {"output": "features", "model": settings.model, "layer": layer, "context": settings.context}
    options |= {"roi": None if roi is None else roi.text, "device": settings.device, "contrast": contrast}
    usual = {"context": "whole", "device": "auto", "contrast": "auto"}
    return command_line(
        ["napari-isdnet", "features", image], {**options, "channels": channels and tuple(channels)}, usual
    )
