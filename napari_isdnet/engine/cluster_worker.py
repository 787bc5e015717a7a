"""What a Dask worker does for a job: open image and network once, compute a unit, write it itself, return its sums.

The maps between the passes and the result stores lie in the job's folder, which client and workers share. Units of one
pass are disjoint windows of those files, so that any number of processes may write at once; a unit that is computed
twice (after a failure) is written with the same bytes.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.exceptions import InputError
from napari_isdnet.window import Window

if TYPE_CHECKING:
    from napari_isdnet.engine.device import Placement
    from napari_isdnet.engine.means import Means
    from napari_isdnet.engine.results import Wanted
    from napari_isdnet.io.source import ImageSource

MODEL = "model.safetensors"
Sums = tuple[str, int, "npt.NDArray[np.float64]"]


@dataclass(frozen=True)
class Recipe:
    """All that a worker must know of a job; small, since it travels with every unit.

    ``image`` is a path, or the source itself where it was made without a file; ``identity`` is what the client sees,
    so that a worker which finds another file under that path says so.
    """

    run: str
    job: Path
    image: Any
    name: str
    scale: float
    identity: dict[str, Any]
    policy: Any
    device: str
    precision: str
    context: str
    window: int
    region: Window
    wanted: Wanted
    skip_bad_tiles: bool
    orientations: int = 1


@dataclass(frozen=True)
class Known:
    """What the client knows of one orientation: names of the maps that are whole, and the means found so far."""

    maps: tuple[str, ...] = ()
    means: Means | None = None


@dataclass(frozen=True)
class Task:
    """A unit of work: ``orientation`` says whose pass ``stage`` is (any, for 'labels')."""

    stage: str
    unit: int
    orientation: int = 0


@dataclass(frozen=True)
class Done:
    """What comes back from a unit: sums of its maps' units, windows that could not be read; or an error in words."""

    unit: int
    sums: list[Sums] = field(default_factory=list)
    bad: list[list[int]] = field(default_factory=list)
    error: str | None = None


class SumLog:
    """Takes the place of the ledger: collects what is to be told to the client."""

    def __init__(self) -> None:
        self.found: list[Sums] = []

    def done(self, stage: str) -> list[int]:  # noqa: ARG002
        """Nothing: the client says what is done."""
        return []

    def sums(self, stage: str, unit: int) -> npt.NDArray[np.float64]:
        """Never asked, since nothing is done."""
        raise KeyError((stage, unit))

    def forget(self, stage: str) -> None:
        """Nothing is known here."""

    def record(self, stage: str, unit: int, sums: npt.NDArray[np.float64]) -> None:
        """A unit is stored."""
        self.found.append((stage, unit, sums))


class Station:
    """One job in one worker process."""

    def __init__(self, recipe: Recipe) -> None:
        from napari_isdnet.engine.device import prepare
        from napari_isdnet.engine.patches import PatchReader
        from napari_isdnet.engine.results import ResultStores
        from napari_isdnet.model.checkpoint import load_model

        self.recipe, self._log = recipe, SumLog()
        if not (recipe.job / MODEL).is_file():
            raise InputError(
                f"A worker cannot see {recipe.job}; give an --output folder that every machine of the cluster shares."
            )
        model = load_model(recipe.job / MODEL)
        placement = _placed(recipe)
        ready = prepare(model, placement)
        assert model.header is not None
        with ExitStack() as stack:
            self.source = _open(recipe, stack)
            self.reader = PatchReader(self.source, recipe.policy, model, recipe.skip_bad_tiles)
            self.stores = stack.enter_context(
                ResultStores.open(recipe.job, self.source, recipe.region, model.header.classes, recipe.wanted)
            )
            self._stack = stack.pop_all()  # what fails before lets go of the image
        self.predictor: Any = None
        self._make = lambda known: _predictor(recipe, ready, self.reader, placement, self._log, known)
        self._known: tuple[tuple[str, ...], ...] | None = None

    def _look(self, known: tuple[Known, ...]) -> None:
        """Open the maps anew at every barrier, so that a network file system shows what others have written."""
        maps = tuple(item.maps for item in known)
        if self.predictor is not None and self._known == maps:
            return
        if self.predictor is not None:
            self.predictor.close()
        self.predictor, self._known = self._make(known), maps
        for part, names in zip(self.predictor.parts, maps, strict=True):
            for item in getattr(part.predictor, "maps", ()):
                if item.name in names:
                    item.mark_done(range(len(item.grid)))

    def unit(self, task: Task, known: tuple[Known, ...]) -> Done:
        """Compute and write one unit of a stage."""
        self._look(known)
        self._log.found.clear()
        self.reader.bad.clear()
        if task.stage == "labels":
            self.stores.fill(task.unit, self.predictor)
            return Done(task.unit, bad=[list(astuple(w)) for w in self.reader.bad])
        image = self.predictor.parts[task.orientation].predictor
        if task.stage == "shallow":
            image.shallow_unit(task.unit)
        else:
            next(item for item in image.maps if item.name == task.stage).ensure(task.unit)
        image.flush()  # before anybody is told
        return Done(task.unit, list(self._log.found))

    def close(self) -> None:
        """Release everything."""
        try:
            if self.predictor is not None:
                self.predictor.close()
        finally:
            self._stack.close()


_LOCK = threading.Lock()  # a worker with several threads computes one unit at a time; torch has threads of its own
_STATION: list[Station] = []


def run_unit(recipe: Recipe, task: Task, known: tuple[Known, ...]) -> Done:
    """The task of a worker. What a user can mend comes back as words; anything else is raised, to be tried again."""
    with _LOCK:
        try:
            if not _STATION or _STATION[0].recipe.run != recipe.run:
                _forget()
                _STATION.append(Station(recipe))
            return _STATION[0].unit(task, known)
        except InputError as error:
            return Done(task.unit, error=str(error))
        except BaseException:
            _forget()  # a unit that was stored in part must be stored, and its sums told, as a whole when tried again
            raise


def forget(run: str) -> None:
    """Release what is kept of a run."""
    with _LOCK:
        if _STATION and _STATION[0].recipe.run == run:
            _forget()


def _forget() -> None:
    while _STATION:
        _STATION.pop().close()


def probe(device: str, precision: str, threads: int | None = None) -> tuple[str, str, str]:
    """(device type, precision, error in words) as this worker chooses them; bounds torch's threads."""
    from napari_isdnet.engine.device import choose, set_threads

    set_threads(threads)
    try:
        placement = choose(device, precision)
    except InputError as error:
        return "", "", str(error)
    return placement.device.type, placement.precision, ""


def _placed(recipe: Recipe) -> Placement:
    """The device asked for; several workers on a machine with several graphics cards take one each."""
    import torch

    from napari_isdnet.engine.device import choose

    device = recipe.device
    if device == "cuda" and torch.cuda.device_count() > 1:
        from distributed import get_worker

        name = str(get_worker().name)
        device = f"cuda:{(int(name) if name.isdigit() else hash(name)) % torch.cuda.device_count()}"
    return choose(device, recipe.precision)


def _open(recipe: Recipe, stack: ExitStack) -> ImageSource:
    from napari_isdnet.io.open import open_source
    from napari_isdnet.io.scaled import resampled

    source = open_source(recipe.image, name=recipe.name) if isinstance(recipe.image, str) else recipe.image
    stack.callback(source.close)
    if recipe.scale != 1.0:
        source = resampled(source, recipe.scale)
    # What came here by itself is a copy of that very image, whatever has become of it meanwhile.
    if isinstance(recipe.image, str) and dict(source.identity()) != recipe.identity:
        raise InputError(
            f"A worker finds another image at {recipe.image} than this machine; give a path that all machines share."
        )
    return source


def _predictor(
    recipe: Recipe, model: Any, reader: Any, placement: Placement, log: SumLog, known: tuple[Known, ...]
) -> Any:
    from napari_isdnet.engine.job import part_folder
    from napari_isdnet.engine.orientations import Oriented, Part, orientations, turned
    from napari_isdnet.engine.streaming import StreamOptions, WholeImage
    from napari_isdnet.engine.windowed import CACHE_BYTES, WindowPredictor

    turns, parts = orientations(recipe.orientations), []
    for turn, found in zip(turns, known, strict=True):
        patches = turned(reader, turn)
        if recipe.context == "window":
            cache = CACHE_BYTES // len(turns)
            parts.append(Part(turn, WindowPredictor(model, patches, placement, recipe.window, cache=cache)))
            continue
        # A whole image forgets nothing that it was not told: what other workers did is marked by the station.
        folder = recipe.job / "maps" / part_folder(turn.number)
        options = StreamOptions(recipe.window, folder, log=log, means=found.means)
        parts.append(Part(turn, WholeImage(model, patches, placement, options)))
    return Oriented(parts, reader, model.config.num_classes)
