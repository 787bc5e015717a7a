"""What the Fine-tune dock knows and does, without Qt: the project, a run from start to end, figures, the history."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_isdnet_training.presets import (
    BACKBONE,
    DEFAULT_WINDOW,
    FRESH_BRANCHES,
    FRESH_WINDOW,
    MAX_HELD_OUT,
    preset_of,
)
from napari_isdnet_training.unfinished import so_far

from napari_isdnet.annotation.counts import by_class
from napari_isdnet.annotation.layout import JOURNAL
from napari_isdnet.annotation.naming import Naming
from napari_isdnet.annotation.project import ModelEntry, Project
from napari_isdnet.annotation.regions import VALIDATION, annotated_regions, split_regions
from napari_isdnet.classes import ClassInfo
from napari_isdnet.engine.viewqueue import close_later
from napari_isdnet.exceptions import InputError
from napari_isdnet.progress import Progress
from napari_isdnet.widgets import _finetune_job as jobs
from napari_isdnet.widgets import _finetune_words as words
from napari_isdnet.widgets._engine import keep_triton_out
from napari_isdnet.widgets._finetune_job import TuneSettings
from napari_isdnet.widgets._finetune_process import TrainingProcess
from napari_isdnet.widgets._projects import close_project, open_project

Item = Progress | Mapping[str, Any] | None


@dataclass(frozen=True)
class Annotated:
    """How much of each class is painted: in all, and in the places that are held out. ``regions``: (in all, held).

    ``naming``: what the classes were called before.
    """

    classes: tuple[ClassInfo, ...]
    painted: tuple[int, ...]
    held: tuple[int, ...]
    regions: tuple[int, int]
    position: int
    naming: Naming = field(default_factory=Naming)

    @property
    def missing(self) -> str:
        """What a run lacks, in a sentence; '' where one can begin."""
        places, judging = self.regions
        if not any(self.painted):
            return "Nothing is annotated yet: paint a few strokes of two classes in the Annotate dock."
        if places > judging:
            return ""
        which = "The only place painted is" if places == 1 else f"All {places} places painted are"
        return f"{which} held out, so nothing can teach yet: paint another place, or set 'Held out' to 0 %."

    @property
    def untaught(self) -> str:
        """Which classes are painted only where they are judged, in a sentence; '' where there is none.

        No reason to refuse: a model that knows them can be judged by them.
        """
        names = [
            f"'{info.name}'"
            for info, painted, held in zip(self.classes, self.painted, self.held, strict=True)
            if painted and held == painted
        ]
        if self.missing or not names:
            return ""
        which = f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"
        return f"{which} painted only in places held out, so nothing teaches {'it' if len(names) == 1 else 'them'} yet."


@dataclass
class Curves:
    """What a run has told so far, by step: losses, and figures of the held-out places (``miou``, ``iou_<class>``)."""

    losses: list[tuple[float, float]] = field(default_factory=list)
    scores: list[tuple[float, dict[str, float]]] = field(default_factory=list)

    def take(self, progress: Progress) -> bool:
        """Take in a step; True where it holds something to draw."""
        figures = dict(progress.figures)
        if progress.stage == "train" and "loss" in figures:
            self.losses.append((progress.done, figures["loss"]))
            return True
        if progress.stage == "validate" and "miou" in figures:
            if not self.scores or self.scores[-1][0] < progress.done:
                self.scores.append((progress.done, figures))
            return True
        return False

    @property
    def before(self) -> dict[str, float]:
        """The figures before the first step; empty until they are known."""
        return self.scores[0][1] if self.scores and self.scores[0][0] == 0 else {}

    @property
    def best(self) -> float | None:
        """The best mIoU so far, the start included."""
        return max((figures["miou"] for _, figures in self.scores), default=None)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its entry in the history (None: nothing as good was found), the worker's figures, and words."""

    entry: ModelEntry | None
    result: Mapping[str, Any]
    stopped: bool
    text: str


class TuneController:
    """State behind the Fine-tune dock. ``train`` and ``resume`` are generators for a worker thread."""

    def __init__(self) -> None:
        self.project: Project | None = None
        self.curves = Curves()
        self.process: TrainingProcess | None = None
        self.said = ""
        self.command: Sequence[str] = ()
        """Another program in place of the training process (in tests)."""

    # -- the project ----------------------------------------------------------------------------------------------
    def open(self, source: Any, folder: Path) -> bool:
        """Open the project in ``folder`` if there is one; True where it is open now. Main thread."""
        self.close()
        if not (folder / JOURNAL).is_file():
            return False
        self.project = open_project(source, (), folder)
        try:
            jobs.take_in(self.project)  # finished while nobody was there
        except BaseException:
            self.close()
            raise
        return True

    def close(self) -> None:
        """Let go of the project; a run goes on elsewhere or is ended by whoever drives it."""
        project, self.project = self.project, None
        if project is not None:
            close_project(project)

    def annotated(self, held_out: float) -> Annotated:
        """What is painted, and which of it would be held out. May run on a worker thread."""
        project = self.opened()
        store = project.store
        regions = annotated_regions(store)
        split = split_regions(regions, 512, held_out, store.pins)
        everything = by_class(regions.values(), len(store.classes))
        held = by_class((c for p, c in regions.items() if split.side(p) == VALIDATION), len(store.classes))
        numbers = (len(regions), len(split.validation))
        return Annotated(store.classes, everything, held, numbers, store.position, store.naming())

    def forecast(self, settings: TuneSettings, held_regions: int) -> Any:
        """How long a run takes (see :mod:`napari_isdnet_training.estimate`); loads torch, so on a worker thread."""
        keep_triton_out()
        from napari_isdnet_training import estimate

        from napari_isdnet.engine.device import choose
        from napari_isdnet.model.checkpoint import read_header
        from napari_isdnet.model.config import ISDNetConfig

        classes = max(2, len(self.opened().store.classes))
        if settings.model == BACKBONE:
            config, window = ISDNetConfig.lite(classes, **FRESH_BRANCHES), FRESH_WINDOW
        else:
            header = read_header(settings.model)
            config, window = header.config, min(header.window, DEFAULT_WINDOW)
        preset = preset_of(settings.preset, settings.model)
        window, batch = settings.window or window, settings.batch or preset.batch
        held = min(held_regions, MAX_HELD_OUT)
        todo = estimate.work(config, settings.preset, settings.steps, batch, window, held, preset.validate_every)
        return estimate.forecast(todo, settings.preset, choose(settings.device))

    # -- a run ----------------------------------------------------------------------------------------------------
    def train(
        self, settings: TuneSettings, image: Mapping[str, str], pixels: Any, wait: Callable[[float], bool]
    ) -> Generator[Item, None, Outcome]:
        """Begin a run with the annotations of now; ``wait`` until what is being painted is in the store."""
        project = self.opened()
        yield Progress(0, 1, "Taking a snapshot of the annotation")
        if not wait(30.0):
            raise InputError("What is being painted is not saved yet; try again in a moment.")
        job = jobs.begin(project, settings, image, pixels)
        self.curves = Curves()
        return (yield from self._drive(project, job, False))

    def resume(self) -> Generator[Item, None, Outcome]:
        """Go on with the run that was cut off."""
        project = self.opened()
        yield Progress(0, 1, "Resuming")
        found = jobs.unfinished_job(project)
        if found is None:
            raise InputError("There is no run to go on with; press Fine-tune.")
        job, state = found
        if state is not None and not self.curves.scores:  # of another session
            known = ((0, state.before), (state.best_step, state.after))
            self.curves = Curves(scores=[(float(step), dict(figures)) for step, figures in known if figures])
        return (yield from self._drive(project, job, True))

    def _drive(self, project: Project, job: dict[str, Any], resume: bool) -> Generator[Item, None, Outcome]:
        yield Progress(0, 1, "Starting the training process")
        process = TrainingProcess({**job, "resume": resume}, jobs.folder_of(project) / jobs.LOG, self.command)
        self.process = process
        last: Mapping[str, Any] | None = None
        events = process.events()
        try:
            while last is None:
                try:
                    event = next(events)
                except StopIteration as end:
                    last = end.value
                    break
                yield _progress(event) if event is not None and event.get("kind") == "progress" else event
        finally:
            self.process = None
            if last is None:  # closed in the middle, or failed: nobody waits for its step
                close_later(process.end)
            else:
                process.end()
        assert last is not None
        return self._finished(project, job, last)

    def _finished(self, project: Project, job: Mapping[str, Any], last: Mapping[str, Any]) -> Outcome:
        stopped = last["kind"] == "stopped"
        result = last.get("result") or so_far(Path(job["output"]))  # None: it was ended by force
        entry = jobs.take_in(project, result, keep=stopped)
        return Outcome(entry, result, stopped, words.ending(entry, result, stopped))

    def take(self, item: Item) -> bool:
        """Take in what a run told; True where the curves have grown. Main thread."""
        if not isinstance(item, Progress):
            return False
        best, grown = self.curves.best, self.curves.take(item)
        if grown and item.stage == "validate":
            self.said = words.judgement(int(item.done), item.figures, self.curves.before, best)
        return grown

    def stop(self) -> None:
        """Ask a run to keep its best and end."""
        if self.process is not None:
            self.process.stop()

    # -- the history ----------------------------------------------------------------------------------------------
    def unfinished(self) -> Any:
        """How far a run that was cut off came; None where there is nothing to go on with."""
        found = None if self.project is None else jobs.unfinished_job(self.project)
        return None if found is None else found[1]

    def history(self) -> list[ModelEntry]:
        """The project's models, newest first."""
        return [] if self.project is None else self.project.history()[::-1]

    def use(self, identifier: str | None) -> Path | None:
        """Go (back) to a model of the history, None for the one before all; returns its file."""
        project = self.opened()
        project.set_current(identifier)
        return None if identifier is None else project.model_path(identifier)

    def export(self, identifier: str, path: Path) -> Path:
        """Write a model of the history as one file with its card; may be slow (reads and writes all weights)."""
        keep_triton_out()
        from napari_isdnet.model.card import export_model

        return export_model(self.opened().model_path(identifier), path)

    def opened(self) -> Project:
        """The project; raises :class:`InputError` where none is open."""
        if self.project is None:
            raise InputError("Nothing is annotated yet: choose an image, and paint some strokes in the Annotate dock.")
        return self.project


def _progress(event: Mapping[str, Any]) -> Progress:
    return Progress(
        event["done"], event["total"], event["stage"], None, event.get("seconds_left"), event.get("figures") or {}
    )
