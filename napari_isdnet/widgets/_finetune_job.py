"""One fine-tuning of a project, as files: what is to be done, the annotations it sees, and what comes out. No Qt.

Everything lies in ``models/tuning`` of the project until it is done: ``job.json``, ``annotations.bin`` (a snapshot, so
that painting may go on), ``tuned.safetensors`` (the weights taken last) with its checkpoint, and at the end
``result.json``. A run that was cut off, by a click or by a power cut, is found there again.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from napari_isdnet_training.presets import BACKBONE, HELD_OUT, PRESETS, SPREAD
from napari_isdnet_training.snapshot import take_snapshot
from napari_isdnet_training.unfinished import Unfinished, unfinished

from napari_isdnet.annotation.lock import FolderLock
from napari_isdnet.annotation.project import MODELS, ModelEntry, Project
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import remove, replacing, write_atomic
from napari_isdnet.system import command_line

FOLDER, JOB, SNAPSHOT, OUTPUT, RESULT, LOG, PIXELS = (
    "tuning", "job.json", "annotations.bin", "tuned.safetensors", "result.json", "worker.log", "image.npy"
)  # fmt: skip
MOST_PIXEL_BYTES = 4 * 2**30


@dataclass(frozen=True)
class TuneSettings:
    """What the user chose. ``model`` is a name, a file or ``backbone``; ``parent`` the history's id of it, if any."""

    model: str
    parent: str | None = None
    preset: str = "quick"
    steps: int = PRESETS["quick"].steps
    held_out: float = HELD_OUT
    spread: int = SPREAD
    seed: int = 0
    device: str = "auto"
    threads: int = 1
    contrast: str = "auto"
    channels: tuple[int, ...] | None = None
    allow_worse: bool = False
    window: int | None = None
    batch: int | None = None

    def options(self) -> dict[str, Any]:
        """Keywords of ``finetune()``."""
        facts = asdict(self)
        options = {k: v for k, v in facts.items() if k not in ("model", "parent", "threads") and v is not None}
        if self.contrast not in ("auto", "none"):
            options["contrast"] = [float(value) for value in self.contrast.split(",")]
        return options


def command(image: str, annotations: Path, output: Path, settings: TuneSettings) -> str:
    """The ``isdnet-train finetune`` line that trains the same weights from a shell."""
    names = ("model", "preset", "steps", "held_out", "spread", "seed", "device", "threads", "window", "batch")
    chosen = {name: getattr(settings, name) for name in (*names, "contrast", "channels", "allow_worse")}
    words = ["isdnet-train", "finetune", image, str(annotations)]
    return command_line(words, {"output": output, **chosen}, {"contrast": "auto"})


def folder_of(project: Project) -> Path:
    """Where a project's run lies."""
    return project.folder / MODELS / FOLDER


def begin(project: Project, settings: TuneSettings, image: Mapping[str, str], pixels: Any = None) -> dict[str, Any]:
    """Write a new run, in place of one that was cut off, once all of it is there; returns the worker's job.

    ``image`` is ``{"image": path}`` or ``{"sample": name}``; ``pixels`` an array that has no file, kept with the run.
    The annotations are those of this moment. Raises :class:`InputError` where nothing (or one class) is painted.
    """
    painted = sum(count > 0 for count in project.store.class_counts())
    if len(project.store.classes) < 2 or not painted:
        raise InputError(
            f"{project.folder} has {len(project.store.classes)} classes and {painted} of them painted; fine-tuning"
            " needs two classes and strokes: paint some in the Annotate dock."
        )
    folder = folder_of(project)
    with replacing(folder, overwrite=True) as new:
        new.mkdir()
        job = _prepare(project, settings, image, pixels, new)
        if folder.is_dir():
            FolderLock(folder).release()  # refused while a process is still at work there
    return job


def _prepare(
    project: Project, settings: TuneSettings, image: Mapping[str, str], pixels: Any, new: Path
) -> dict[str, Any]:
    """Write the files of a run into ``new``; its job says where they will lie."""
    folder = folder_of(project)
    project.store.flush()
    snapshot = take_snapshot(project.store, settings.held_out)
    snapshot.save(new / SNAPSHOT)
    if pixels is not None:
        _keep_pixels(new / PIXELS, pixels)
    job = {
        **(image if pixels is None else {"image": str(folder / PIXELS)}),
        "annotations": str(folder / SNAPSHOT),
        "model": settings.model,
        "output": str(folder / OUTPUT),
        "threads": settings.threads,
        "options": settings.options(),
        "run": uuid.uuid4().hex,
        "position": snapshot.position,
        "held_out_regions": len(snapshot.split.validation),
        "parent": settings.parent,
        "pixels": dict(zip((c.name for c in snapshot.classes), snapshot.class_counts(), strict=True)),
    }
    write_atomic(new / JOB, json.dumps(job, indent=1).encode())
    return job


def _keep_pixels(path: Path, pixels: Any) -> None:
    if not isinstance(pixels, np.ndarray) or pixels.nbytes > MOST_PIXEL_BYTES:
        raise InputError("This image has no file that the trainer could read; save it to a file and load that first.")
    np.save(path, pixels, allow_pickle=False)


def unfinished_job(project: Project) -> tuple[dict[str, Any], Unfinished | None] | None:
    """The job that was cut off and how far it came (None: not even a checkpoint); None where there is none."""
    folder = folder_of(project)
    try:
        job: dict[str, Any] = json.loads((folder / JOB).read_bytes())
    except (OSError, ValueError):
        return None
    if not (folder / SNAPSHOT).is_file():
        return None
    return job, unfinished(folder / OUTPUT)


def take_in(project: Project, result: Mapping[str, Any] | None = None, keep: bool = False) -> ModelEntry | None:
    """Put the weights of a run into the project's history and make them current; None where it has none.

    Weights that are there already stay one entry: whoever took them in may have been killed before the run was gone.
    ``result`` is the worker's (default: what it left in ``result.json``); ``keep`` leaves the run there to go on.
    """
    folder = folder_of(project)
    found = unfinished_job(project)
    if result is None:
        try:
            result = json.loads((folder / RESULT).read_bytes())
        except (OSError, ValueError):
            return None
    entry = None
    output = folder / OUTPUT
    if found is not None and result is not None and result.get("model") and output.is_file():
        job = found[0]
        figures = {k: result[k] for k in ("steps", "best_step", "reason", "of") if k in result}
        figures |= {"before": dict(result.get("held_out_before", {})), "after": dict(result.get("held_out_after", {}))}
        figures |= {"start": Path(job["model"]).stem, "start_model": job["model"]}
        figures |= {"preset": job["options"]["preset"], "seed": job["options"]["seed"], "pixels": job["pixels"]}
        figures |= {"run": job.get("run")}
        entry = _known(project, figures) or project.add_model(
            output, name=_name(project, job), parent=job["parent"], root=job["parent"] is None, figures=figures,
            position=int(job["position"]),
        )  # fmt: skip
    if not keep:
        remove(folder)
    return entry


def _known(project: Project, figures: Mapping[str, Any]) -> ModelEntry | None:
    """The entry of the same run as far as it came; one that was stopped, taken in and gone on with is another."""
    if figures["run"] is None:
        return None
    same = ("run", "steps", "best_step")
    alike = (e for e in project.history() if all(e.figures.get(key) == figures.get(key) for key in same))
    return next(alike, None)


def _name(project: Project, job: Mapping[str, Any]) -> str:
    return f"{Path(project.store.name).stem} {job['options']['preset']} {len(project.history()) + 1}"


def is_backbone(model: str) -> bool:
    """True where everything but the backbone starts anew."""
    return model == BACKBONE
