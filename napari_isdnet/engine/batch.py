"""Many images, one model: a queue that goes on after failures and after a restart.

The queue is a small JSON file in the output folder, written whole after every change of state. Results lie where
``napari-isdnet segment`` puts them, and each image has its own job, so that an image which was interrupted goes on
where it stopped.
"""

from __future__ import annotations

import glob
import json
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from napari_isdnet.exceptions import AlreadyThere, InputError
from napari_isdnet.io.disk import disk_errors, write_atomic
from napari_isdnet.io.lock import alone
from napari_isdnet.progress import Progress
from napari_isdnet.system import command_line, same_file

if TYPE_CHECKING:
    from napari_isdnet.model.isdnet import ISDNet

QUEUE: Final = "batch.json"
VERSION: Final = 1
QUEUED, RUNNING, DONE, FAILED, SKIPPED = "queued", "running", "done", "failed", "skipped"
STATES: Final = (QUEUED, RUNNING, DONE, FAILED, SKIPPED)
_TIFFS: Final = {".tif", ".tiff", ".btf", ".tf8", ".svs", ".ndpi", ".scn", ".mrxs", ".bif", ".svslide"}
SUFFIXES: Final = frozenset(_TIFFS | {".png", ".jpg", ".jpeg", ".jp2", ".npy", ".zarr", ".vrt"})


@dataclass(frozen=True)
class Item:
    """One image of a queue. ``error`` says in words why it failed or is skipped; ``done`` is a share, 0 to 1.

    ``warnings`` are what is to be known of its result, in sentences.
    ``model`` and ``settings`` are those that its result was made with: the queue's may be others by now.
    """

    path: str
    stem: str
    state: str = QUEUED
    done: float = 0.0
    error: str = ""
    seconds: float = 0.0
    pixels: int = 0
    outputs: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = field(default_factory=list)


@dataclass(frozen=True)
class BatchProgress(Progress):
    """Progress of the whole queue; ``index`` is the image that moved and ``item`` what is known of it now."""

    index: int = 0
    item: Item | None = None


def find_images(items: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Images of files, folders (not what lies deeper) and patterns such as ``scans/**/*.tif``, each once, sorted.

    An OME-Zarr folder is an image. Raises :class:`InputError` for what does not exist or holds no image.
    """
    found: dict[Path, None] = {}
    for item in items:
        text = os.path.expanduser(os.fspath(item))
        path = Path(text)
        if path.exists():
            images = _in_folder(path) if path.is_dir() and not _is_store(path) else [path]
            where = f"The folder {path}"
        else:
            if not glob.has_magic(text):
                raise InputError(f"{path} does not exist; give a file, a folder or a pattern such as scans/*.tif.")
            images = [Path(p) for p in sorted(glob.glob(text, recursive=True)) if _is_image(Path(p))]
            where = f"The pattern {text}"
        if not images:
            raise InputError(f"{where} holds no image; known are {', '.join(sorted(SUFFIXES))}.")
        found.update(dict.fromkeys(images))
    return list(found)


def _is_store(path: Path) -> bool:
    return path.suffix.lower() == ".zarr" or (path / "zarr.json").exists() or (path / ".zattrs").exists()


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _in_folder(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if _is_image(p) and (p.is_file() or _is_store(p)))


class BatchQueue:
    """Images, their states, and the settings they share; kept in ``<output>/batch.json``.

    Not thread-safe: one thread changes it at a time. ``settings`` are keywords of
    :func:`~napari_isdnet.engine.segment.segment` (JSON-ready).
    """

    def __init__(self, output: Path, items: Iterable[Item] = (), model: str = "", settings: Any = None) -> None:
        self.output, self.items, self.model = output, list(items), model
        self.settings: dict[str, Any] = dict(settings or {})
        self._known: bytes | None = None

    @classmethod
    def open(cls, output: str | os.PathLike[str]) -> BatchQueue:
        """The queue of a folder, empty where there is none. What ran when the program ended is queued again."""
        folder = Path(output)
        file = folder / QUEUE
        try:
            content = file.read_bytes()
            data = json.loads(content)
            if data["version"] != VERSION:
                raise InputError(f"{file} has version {data['version']}, this program reads {VERSION}; move it away.")
            items = [Item(**item) for item in data["items"]]
            if any(item.state not in STATES for item in items):
                raise ValueError("unknown state")
            queue = cls(folder, items, str(data["model"]), dict(data["settings"]))
        except FileNotFoundError:
            return cls(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{file} cannot be read ({error}); remove it to begin a new queue.") from error
        queue.items = [replace(i, state=QUEUED) if i.state == RUNNING else i for i in queue.items]
        queue._known = content
        return queue

    @property
    def changed(self) -> bool:
        """True where another window has written the queue since it was read or written here."""
        try:
            return (self.output / QUEUE).read_bytes() != self._known
        except OSError:
            return False

    def save(self) -> None:
        """Write the queue file whole."""
        data = {
            "version": VERSION,
            "model": self.model,
            "settings": self.settings,
            "items": [vars(item) for item in self.items],
        }
        with disk_errors(self.output):
            self.output.mkdir(parents=True, exist_ok=True)
        content = json.dumps(data).encode()  # indented it takes four times as long, and is written twice an image
        write_atomic(self.output / QUEUE, content)
        self._known = content

    def add(self, paths: Iterable[str | os.PathLike[str]]) -> list[Item]:
        """Add images; those that are there already are left. Returns what was added.

        Raises :class:`InputError`, and adds nothing, where two images have one stem, since results are named by it.
        """
        from napari_isdnet.io.open import stem_of

        known = {same_file(item.stem): item.path for item in self.items}
        added: list[Item] = []
        for path in paths:
            full = str(Path(os.path.expanduser(path)).absolute())
            stem = stem_of(Path(full))
            other = known.setdefault(same_file(stem), full)
            if other is full:
                added.append(Item(full, stem))
            elif same_file(other) != same_file(full):
                raise InputError(
                    f"{full} and {other} have one name, '{stem}', and would write the same result; rename one, or"
                    " use another output folder for it."
                )
        self.items += added
        return added

    def remove(self, indices: Iterable[int]) -> None:
        """Take images out of the queue; their results stay."""
        gone = set(indices)
        self.items = [item for index, item in enumerate(self.items) if index not in gone]

    def again(self, indices: Iterable[int]) -> None:
        """Queue images again, whatever they are."""
        for index in indices:
            self.items[index] = replace(self.items[index], state=QUEUED, error="", done=0.0, warnings=[])

    def skip(self, indices: Iterable[int]) -> None:
        """Leave images out that are not done."""
        for index in indices:
            if self.items[index].state in (QUEUED, FAILED):
                self.items[index] = replace(self.items[index], state=SKIPPED, error="left out by you")

    def counts(self) -> dict[str, int]:
        """Number of images in each state."""
        return {state: sum(item.state == state for item in self.items) for state in STATES}

    @property
    def fraction(self) -> float:
        """Share of the work done: images that are over count whole."""
        over = [1.0 if item.state in (DONE, FAILED, SKIPPED) else item.done for item in self.items]
        return sum(over) / len(over) if over else 1.0

    def run(
        self, network: ISDNet | str | None = None, segment: Callable[..., Generator[Progress, None, Any]] | None = None
    ) -> Generator[BatchProgress, None, dict[str, int]]:
        """Segment what is queued, one image after the other; yields after every window, returns :meth:`counts`.

        An image that fails is marked with the error in words and the next begins. Closing the generator leaves the
        image at hand queued; its job goes on from there next time. ``network`` spares loading the model again;
        ``segment`` replaces the engine's own generator. Raises :class:`InputError` where another process runs it,
        or has changed it since it was opened.
        """
        with alone(self.output / QUEUE):
            if self._known is not None and self.changed:
                raise InputError(f"Another window has changed the queue of {self.output}; open the folder again.")
            return (yield from self._run(network, segment))

    def _run(
        self, network: ISDNet | str | None, segment: Callable[..., Generator[Progress, None, Any]] | None
    ) -> Generator[BatchProgress, None, dict[str, int]]:
        from napari_isdnet.engine.segment import segment as engine_segment

        work = segment or engine_segment
        started, before = time.monotonic(), self.fraction
        self.save()
        while (index := next((i for i, item in enumerate(self.items) if item.state == QUEUED), None)) is not None:
            self._change(index, state=RUNNING, error="", warnings=[])
            try:
                yield self._step(index, "opening", started, before)
                yield from self._one(index, work, network or self.model, started, before)
            finally:
                if self.items[index].state == RUNNING:  # closed in the middle
                    self._change(index, state=QUEUED)
            yield self._step(index, self.items[index].state, started, before)
        return self.counts()

    def _one(
        self, index: int, work: Callable[..., Any], model: Any, started: float, before: float
    ) -> Generator[BatchProgress, None, None]:
        item, begun = self.items[index], time.monotonic()
        used: dict[str, Any] = {"model": self.model, "settings": dict(self.settings)}
        steps = work(item.path, model, output=self.output, **engine_settings(self.settings))
        try:
            while True:
                step = next(steps)
                self.items[index] = replace(self.items[index], done=step.fraction)
                yield self._step(index, step.stage, started, before, step)
        except StopIteration as stop:
            result = stop.value
            outputs, pixels = dict(getattr(result, "outputs", {})), int(getattr(result, "pixels", 0))
            used |= {"warnings": list(getattr(result, "warnings", []))}
            seconds = time.monotonic() - begun
            self._change(index, state=DONE, done=1.0, outputs=outputs, pixels=pixels, seconds=seconds, **used)
        except AlreadyThere as error:
            self._failed(index, str(error), begun, SKIPPED)
        except InputError as error:
            self._failed(index, str(error), begun)
        except MemoryError:
            self._failed(index, "The memory is not enough; give a smaller memory budget.", begun)
        except Exception as error:  # a bug with one image must not stop a night's work on the others
            text = " ".join(str(error).split())[:300]
            self._failed(index, f"An error of this program: {type(error).__name__}: {text}", begun)
        finally:
            steps.close()

    def _failed(self, index: int, error: str, begun: float, state: str = FAILED) -> None:
        self._change(index, state=state, error=error, seconds=time.monotonic() - begun)

    def _change(self, index: int, **facts: Any) -> None:
        self.items[index] = replace(self.items[index], **facts)
        self.save()

    def _step(
        self, index: int, stage: str, started: float, before: float, step: Progress | None = None
    ) -> BatchProgress:
        item, done = self.items[index], self.fraction
        elapsed, worked = time.monotonic() - started, done - before
        left = elapsed * (1 - done) / worked if worked > 1e-6 and elapsed > 0.5 else None
        return BatchProgress(done, 1.0, f"{item.stem}: {stage}", step.window if step else None, left, {}, index, item)


def engine_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from a queue file as the engine takes them (tuples, where JSON has lists)."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}


def command(queue: BatchQueue) -> str:
    """The ``napari-isdnet segment`` line that does what is left of a queue."""
    left = [item.path for item in queue.items if item.state in (QUEUED, RUNNING, FAILED)]
    words = ["napari-isdnet", "segment", *(left or [item.path for item in queue.items])]
    chosen: dict[str, Any] = {"output": queue.output, "model": queue.model or None}
    for key, value in engine_settings(queue.settings).items():
        if key == "formats":
            chosen["format"] = [one for one in value if one != "ome-zarr" or len(value) > 1]
        elif value not in (False, "auto"):
            chosen[key] = value
    return command_line(words, chosen)
