"""The real engine behind the Segment dock: models, devices, live windows and whole jobs. No Qt, all but names slow."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from napari_isdnet.classes import ClassInfo
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import ImageSource
from napari_isdnet.progress import Progress
from napari_isdnet.window import Window

if TYPE_CHECKING:
    from napari_isdnet.engine.device import Placement
    from napari_isdnet.engine.job import Predictor
    from napari_isdnet.model.header import ModelHeader
    from napari_isdnet.model.isdnet import ISDNet

LIVE_CORE = (512, 512)
"""Windows of the live grid: small, so that the first answer comes soon."""
WAIT_SECONDS = 0.2
KEPT_JOBS = 3
"""Searches for means that were interrupted and can go on, the last ones: their maps take 7 bytes a pixel."""
_LIVE_MAP_CORE = 1024
"""Cores of the feature maps under known means: larger ones cost less a pixel, but the first answer comes later."""


@dataclass(frozen=True)
class ModelAbout:
    """A model as a person chooses it. ``pixel_size`` in metres, ``window`` in pixels.

    ``taught``: names of the classes that it knows, '' in place of one that is only listed; ``lineage``: where its
    weights come from.
    """

    name: str
    classes: tuple[ClassInfo, ...]
    pixel_size: float | None
    window: int
    summary: str
    details: str
    taught: tuple[str, ...] = ()
    lineage: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LiveWork:
    """How a model segments windows of one image: the fixed grid's core size, the function, and what to do at the end.

    ``compute`` may be called from several threads, ``close`` once nothing computes any more.
    """

    core: tuple[int, int]
    compute: Callable[[Window], npt.NDArray[np.uint8]]
    close: Callable[[], None] = lambda: None


class LocalEngine:
    """This machine. Thread-safe; the last network is kept, so that a second start is quick.

    ``folder`` is where feature maps of large images go while a live view needs them (default: the cache folder).
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._loaded: tuple[tuple[str, int], ISDNet] | None = None

    def models(self) -> Sequence[str]:
        """Names of the models that are there, the default one first."""
        return model_names()

    def about(self, model: str) -> ModelAbout:
        """What the header of a model says (fast: no weights are read)."""
        keep_triton_out()
        from napari_isdnet.model.checkpoint import read_header

        return about(read_header(model))

    def devices(self) -> Sequence[tuple[str, str]]:
        """(key, text with name and free memory) of each device."""
        keep_triton_out()
        import torch

        from napari_isdnet.engine.device import choose, describe_device

        found = ["cpu"]
        if torch.cuda.is_available():
            found = [*(f"cuda:{i}" for i in range(torch.cuda.device_count())), *found]
        elif torch.backends.mps.is_available():
            found = ["mps", *found]
        best = choose().device.type
        texts = {}
        for key in found:
            facts = describe_device(torch.device(key))
            texts[key] = f"{facts['name']}, {facts['free'] / 2**30:.1f} GiB free"
        automatic = next(text for key, text in texts.items() if key.startswith(best))
        return [("auto", f"Automatic ({automatic})"), *texts.items()]

    def live(self, source: ImageSource, model: str, device: str, policy: Any, orientations: int = 1) -> LiveWork:
        """Windowed inference on the live grid."""
        network, placement = self._prepare(model, device)
        from napari_isdnet.engine.job import make_predictor

        predictor = make_predictor(network, source, policy, placement, context="window", orientations=orientations)
        return LiveWork(LIVE_CORE, predictor.labels, predictor.close)

    def exact(
        self, source: ImageSource, model: str, device: str, policy: Any, memory: float | None, orientations: int = 1
    ) -> Generator[Progress, None, LiveWork]:
        """Inference under the means of the whole image, which are found first unless they are known.

        A search for them that was interrupted goes on where it stopped. Where another window of napari searches for
        the same, its answer is waited for.
        """
        keep_triton_out()
        from napari_isdnet.engine.job import (
            LedgerLog,
            job_header,
            keep_means,
            known_means,
            make_predictor,
            means_key,
        )
        from napari_isdnet.engine.ledger import Ledger
        from napari_isdnet.model.checkpoint import model_hash

        yield Progress(0, 1, "Whole image")
        network, placement = self._prepare(model, device)
        header = job_header(
            source, model_hash(network), placement, {"intensity": policy.to_dict(), "scale": 1.0, "memory": memory}
        )
        several = f"-{orientations}" if orientations > 1 else ""
        job = self._live_folder() / f"{means_key(header)}{several}.job"
        yield from _others_turn(job)
        means = known_means(header, orientations)
        if None not in means:
            _remove(job)  # a search that was interrupted, which nobody goes on with now
            return self._under_means(network, source, policy, placement, memory, means)
        _forget_interrupted(job)
        with Ledger.open(job, header, overwrite=True) as ledger:
            predictor = make_predictor(
                network, source, policy, placement, memory=memory, folder=job / "maps", log=LedgerLog(ledger),
                means=means, orientations=orientations,
            )  # fmt: skip
            try:
                yield from predictor.prepare()
            except BaseException:  # also when the generator is closed: the file handles are released
                predictor.close()
                raise
            keep_means(header, predictor)  # before the lock goes: who waited for it looks for them
        return _locked(predictor, lambda: _remove(job))

    def _under_means(
        self,
        network: ISDNet,
        source: ImageSource,
        policy: Any,
        placement: Placement,
        memory: float | None,
        means: Sequence[Any],
    ) -> LiveWork:
        """Maps are computed around what is looked at, in sparse files that go with the live view."""
        from napari_isdnet.engine.job import make_predictor

        with ExitStack() as stack:
            maps = map_folder(self._live_folder(), stack)
            predictor = make_predictor(
                network, source, policy, placement, window=_LIVE_MAP_CORE, memory=memory, folder=maps, means=means,
                orientations=len(means),
            )  # fmt: skip
            return _locked(predictor, stack.pop_all().close)

    def segment(
        self, source: ImageSource, model: str, output: Path, settings: Mapping[str, Any]
    ) -> Generator[Progress, None, Any]:
        """Segment to files; the same generator as the command line's, with one core left to the window."""
        keep_triton_out()
        from napari_isdnet.engine.segment import segment

        yield Progress(0, 1, "Loading the model")
        network, _ = self._prepare(model, str(settings.get("device", "auto")))
        return (yield from segment(source, network, output=output, **settings))

    def _prepare(self, model: str, device: str) -> tuple[ISDNet, Placement]:
        keep_triton_out()
        from napari_isdnet.engine.device import choose, set_threads
        from napari_isdnet.engine.viewqueue import spare_core_threads
        from napari_isdnet.model.checkpoint import find_model, load_model

        placement = choose(device)
        set_threads(spare_core_threads(most=1024))
        with self._lock:
            path = find_model(model)
            key = (str(path.resolve()), path.stat().st_mtime_ns)
            if self._loaded is None or self._loaded[0] != key:
                self._loaded = (key, load_model(path))
            return self._loaded[1], placement

    def _live_folder(self) -> Path:
        from napari_isdnet.paths import cache_folder

        folder = self._folder or cache_folder() / "live"
        with _cache_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder


def about(header: ModelHeader) -> ModelAbout:
    """A header in words."""
    from napari_isdnet.io.units import length_text
    from napari_isdnet.model.header import taught_names

    size = f"pixels of {length_text(header.pixel_size)}" if header.pixel_size else "pixel size not stated"
    summary = f"{len(header.classes)} classes · {size} · {header.window} px windows"
    lines = [header.name, header.description, f"Flavour {header.flavour}, deep branch {header.config.deep}"]
    if header.contrast_options:
        lines.append(f"Tuned on images shown with {header.contrast_options}")
    lines += [f"Licence: {header.licence}", f"Made with version {header.version}"]
    lines += [f"{key}: {value:.4g}" for key, value in header.figures.items() if isinstance(value, int | float)]
    details = "\n".join(line for line in lines if line)
    known = (header.classes, header.pixel_size, header.window)
    return ModelAbout(header.name, *known, summary, details, taught_names(header), header.lineage)


def map_folder(cache: Path, stack: ExitStack) -> Path:
    """A folder in ``cache`` for spilled maps until ``stack`` is closed; what was left by a kill goes with the next."""
    from napari_isdnet.io.disk import scratch_folder

    with _cache_errors(cache):
        return stack.enter_context(scratch_folder(cache))


@contextmanager
def _cache_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"The cache folder {folder} cannot be written ({error.strerror}); choose another in the preferences."
        ) from None


def _locked(predictor: Predictor, after: Callable[[], None]) -> LiveWork:
    """A streamed image is driven by one thread at a time."""
    lock = threading.Lock()

    def compute(window: Window) -> npt.NDArray[np.uint8]:
        with lock:
            return predictor.labels(window)

    def close() -> None:
        with lock:
            predictor.close()
            after()

    return LiveWork(LIVE_CORE, compute, close)


def _others_turn(job: Path) -> Generator[Progress, None, None]:
    """Wait while another window of napari works on ``job``, in this process or another."""
    from napari_isdnet.engine.ledger import LOCK
    from napari_isdnet.engine.lock import JobLock

    while (job / LOCK).exists():
        lock = JobLock(job / LOCK)
        try:
            lock.acquire()
        except InputError:
            yield Progress(0, 1, "another window of napari goes over this image")
            time.sleep(WAIT_SECONDS)
        except OSError:  # the folder has gone, or cannot be written: what opens the job says so
            return
        else:
            lock.release()
            return


def _forget_interrupted(job: Path) -> None:
    """Remove the searches beside ``job`` that were interrupted, but the last :data:`KEPT_JOBS` of them."""
    from napari_isdnet.engine.ledger import LOG, at_rest
    from napari_isdnet.io.disk import least_used

    others = [log for log in job.parent.glob(f"*.job/{LOG}") if log.parent != job]
    for log in least_used(others, KEPT_JOBS):
        with suppress(InputError):  # another window works on it
            with at_rest(log.parent):
                pass
            _remove(log.parent)


def keep_triton_out() -> None:
    """Say that triton is not installed, where loading it would end the process.

    Software OpenGL (Mesa) brings its own LLVM into a process that draws; triton's library brings another, and its
    start then crashes. timm imports torchvision, which tries triton though inference does not need it.
    """
    if "triton" in sys.modules or not sys.platform.startswith("linux"):
        return
    try:
        libraries = Path("/proc/self/maps").read_text()
    except OSError:
        return
    if "libLLVM" in libraries:
        sys.modules["triton"] = None  # type: ignore[assignment]  # the import system's own way to say 'not there'
        # torch would tell the console that it is missing, which is what was wanted.
        logging.getLogger("torch.utils.flop_counter").addFilter(lambda record: "triton not found" not in record.msg)


def _remove(folder: Path) -> None:
    from napari_isdnet.io.disk import remove

    try:
        remove(folder)
    except OSError:  # a leftover in the cache is no reason to disturb anyone
        return


def model_names() -> list[str]:
    """Names of the models that are there, the default one first. Not on the main thread: torch takes seconds."""
    keep_triton_out()
    from napari_isdnet.model.checkpoint import DEFAULT_MODEL, available_models

    return sorted(available_models(), key=lambda name: (name != DEFAULT_MODEL, name))


def look_for_models() -> Generator[Progress, None, list[str]]:
    """The same as the work of a :class:`~napari_isdnet.widgets._job.JobBar`."""
    yield Progress(0, 1, "Looking for models")
    return model_names()
