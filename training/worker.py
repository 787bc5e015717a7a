"""Fine-tuning in a process of its own, driven by lines: what the Fine-tune dock runs, so that its window stays live.

``python -m napari_isdnet_training.worker`` reads one JSON object (the job, see :func:`train`) from the first line of
its standard input, then words, one a line: ``pause``, ``resume``, ``stop``. The end of the input means ``stop``:
whoever started it is gone. It answers with JSON objects, one a line, on its standard output; ``kind`` is ``started``,
``progress``, ``improved`` (the output file holds better weights now), then one of ``finished``, ``stopped`` or
``failed``.

Everything is computed by :func:`napari_isdnet_training.finetune.finetune`, as on the command line. Killing this process
loses what is younger than the last checkpoint (a second, or ten times what writing one takes where that is more).
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from napari_isdnet_training.unfinished import so_far

from napari_isdnet.exceptions import InputError
from napari_isdnet.progress import Progress
from napari_isdnet.system import leave

RESULT = "result.json"
"""Beside the output of a finished run: its figures, for whoever takes the model over later."""
NICENESS = 5
"""The window comes first: at least so nice to other processes; Windows has a class below the normal one instead."""

Emit = Callable[[Mapping[str, Any]], None]


class Orders:
    """What the other side has asked for; reads a file descriptor in a thread of its own."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._first = threading.Event()
        self._go = threading.Event()
        self._go.set()
        self.job: dict[str, Any] | None = None
        self.stopped = threading.Event()
        threading.Thread(target=self._read, name="orders", daemon=True).start()

    def _read(self) -> None:
        # Plain os.read: a buffered reader that is blocked in a daemon thread ends the interpreter with an error.
        waiting = b""
        while True:
            try:
                more = os.read(self._descriptor, 65536)
            except OSError:
                more = b""
            if not more:
                self._obey(b"stop")
                return
            *lines, waiting = (waiting + more).split(b"\n")
            for line in lines:
                self._obey(line.strip())

    def _obey(self, line: bytes) -> None:
        if line == b"stop":
            self.stopped.set()
        if not self._first.is_set():
            try:
                self.job = json.loads(line)
            except ValueError:
                self.job = None
            self._first.set()
        elif line == b"pause":
            self._go.clear()
        if line in (b"stop", b"resume"):
            self._go.set()

    def wait_for_job(self) -> dict[str, Any] | None:
        """The job; None where the input ended, or held something else."""
        self._first.wait()
        return self.job

    def wait_while_paused(self) -> None:
        """Return at once unless paused."""
        self._go.wait()


def train(job: Mapping[str, Any], orders: Orders, emit: Emit) -> None:
    """Run one job and tell about it.

    ``job``: ``image`` (a file) or ``sample`` (a name), ``annotations`` (a snapshot's file), ``model``, ``output``,
    ``threads`` (None: all cores but one), ``resume``, and the keywords of ``finetune()`` under ``options``.
    """
    from napari_isdnet_training.finetune import finetune
    from napari_isdnet_training.snapshot import Snapshot

    from napari_isdnet.annotation.lock import FolderLock
    from napari_isdnet.engine.device import choose, keep_freed_memory, set_threads
    from napari_isdnet.engine.viewqueue import spare_core_threads

    options, output = dict(job["options"]), Path(job["output"])
    threads = job.get("threads") or spare_core_threads(most=1024)
    set_threads(int(threads))
    keep_freed_memory()
    placement = choose(options.get("device", "auto"), options.get("precision", "auto"))
    for key in ("contrast", "channels"):
        if isinstance(options.get(key), list):
            options[key] = tuple(options[key])
    output.parent.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(output.parent)
    try:
        source = _source(job)
        facts = {"pid": os.getpid(), "device": str(placement.device), "precision": placement.precision}
        emit({"kind": "started", "threads": int(threads), **facts})
        snapshot = Snapshot.load(Path(job["annotations"]))
        resume = bool(job.get("resume", True))
        steps = finetune(source, snapshot, job["model"], output=output, resume=resume, overwrite=True, **options)
        watch = _Watch(output)
        try:
            while not orders.stopped.is_set():
                progress = next(steps)
                emit(_line(progress))
                if watch.news(progress):
                    emit({"kind": "improved", "model": str(output), "figures": dict(progress.figures)})
                orders.wait_while_paused()
                watch.go_on()
        except StopIteration as end:
            result = end.value.to_dict()
            _write_result(output.parent / RESULT, result)
            watch.remember(job, len(snapshot.split.validation), placement)
            emit({"kind": "finished", "result": result})
            return
        finally:
            steps.close()
            source.close()
        emit({"kind": "stopped", "result": so_far(output)})
    finally:
        lock.release()


def _source(job: Mapping[str, Any]) -> Any:
    if job.get("sample"):
        from napari_isdnet.io.samples import open_sample

        return open_sample(str(job["sample"]))
    from napari_isdnet.io.open import open_source

    return open_source(job["image"])


def _line(progress: Progress) -> dict[str, Any]:
    facts = asdict(progress)
    facts.pop("window")
    return {"kind": "progress", **facts, "figures": dict(progress.figures)}


def _write_result(path: Path, result: Mapping[str, Any]) -> None:
    from napari_isdnet.io.disk import write_atomic

    write_atomic(path, json.dumps(result).encode())


class _Watch:
    """Sees whether the output was replaced, and how long the work took."""

    def __init__(self, output: Path) -> None:
        self._output, self._seen = output, self._identity(output)
        self._last = time.monotonic()
        self._seconds = 0.0
        self._steps = self._validations = 0

    @staticmethod
    def _identity(path: Path) -> tuple[int, int] | None:
        try:
            stat = path.stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns

    def news(self, progress: Progress) -> bool:
        """Take in a step; True when better weights were written in it."""
        now = time.monotonic()
        self._seconds += now - self._last
        self._last = now
        self._steps += progress.stage == "train"
        self._validations += progress.stage == "validate"
        if progress.stage != "validate":
            return False
        before, self._seen = self._seen, self._identity(self._output)
        return self._seen is not None and self._seen != before

    def go_on(self) -> None:
        """What passed since the last step was a pause, no work."""
        self._last = time.monotonic()

    def remember(self, job: Mapping[str, Any], held_out: int, placement: Any) -> None:
        """Keep the speed for the next forecast."""
        from napari_isdnet_training import estimate
        from napari_isdnet_training.presets import DEFAULT_WINDOW, MAX_HELD_OUT, preset_of

        from napari_isdnet.model.checkpoint import read_header

        if self._steps < 3 or not self._output.is_file():
            return
        options, header = job["options"], read_header(self._output)
        preset = str(options.get("preset", "quick"))
        window = int(options.get("window") or min(header.window, DEFAULT_WINDOW))
        batch = int(options.get("batch") or preset_of(preset, str(job["model"])).batch)
        todo = estimate.work(header.config, preset, self._steps, batch, window, 0, 1)
        one = todo.training / (self._steps * batch * estimate.PASSES[preset])
        judged = one * min(held_out, MAX_HELD_OUT) * self._validations
        estimate.remember(estimate.Work(todo.training, judged), self._seconds, preset, placement)


def _out() -> Emit:
    """Lines go to the real standard output; whatever libraries print goes to standard error."""
    file = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)

    def emit(facts: Mapping[str, Any]) -> None:
        try:
            file.write(json.dumps(facts, default=str) + "\n")
            file.flush()
        except OSError:  # nobody listens any more: the end of the input stops the run
            return

    return emit


def _in() -> int:
    """A descriptor from which orders are read; standard input itself is empty from now on.

    On Windows who asks what kind of file it is waits for a read of it that is under way, until the next order: numpy
    does as it is loaded (numpy issue 24290), Python as it starts in another process (CPython issue 78961).
    """
    orders, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return orders


def _step_back() -> None:
    me = psutil.Process()
    me.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS if sys.platform == "win32" else max(NICENESS, me.nice()))


def main() -> int:
    """Entry point; exit code 0 after ``finished`` and ``stopped``, 1 after ``failed``."""
    emit, orders = _out(), Orders(_in())
    _step_back()
    job = orders.wait_for_job()
    if job is None:
        return 2
    try:
        train(job, orders, emit)
    except InputError as error:
        emit({"kind": "failed", "error": str(error), "bug": False})
    except ImportError as error:
        text = f"Fine-tuning needs '{error.name}': install napari-isdnet[train], then try again."
        emit({"kind": "failed", "error": text, "bug": False})
    except Exception as error:
        traceback.print_exc()
        emit({"kind": "failed", "error": f"{type(error).__name__}: {error}", "bug": True})
    else:
        return 0
    return 1


if __name__ == "__main__":
    leave(main())
