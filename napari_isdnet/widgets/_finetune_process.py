"""The training process of the Fine-tune dock, as a generator of what it tells. No Qt.

Nothing outlives whoever started it: the process ends when its standard input does. It is asked kindly first, so that it
writes a checkpoint, and ended by force where it does not answer.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from napari_isdnet.exceptions import InputError

WORKER = "napari_isdnet_training.worker"
PATIENCE_SECONDS = 30.0
"""A step or a validation at hand may take so long before the process is ended by force."""
_LOOK_SECONDS = 0.25
ENDS = ("finished", "stopped", "failed")

Event = dict[str, Any]


class TrainingError(Exception):
    """The training process failed by a fault of ours; the message holds its error and where its log lies."""


class TrainingProcess:
    """Runs one job. :meth:`pause`, :meth:`resume` and :meth:`stop` may be called from any thread."""

    def __init__(self, job: Mapping[str, Any], log: Path, command: Sequence[str] = ()) -> None:
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [*(command or (sys.executable, "-m", WORKER))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        self._lines: queue.Queue[Event | None] = queue.Queue()
        self._stop_by: float | None = None
        self._sending = threading.Lock()
        self._reader = threading.Thread(target=self._read, name="isdnet-job-reader", daemon=True)
        self._reader.start()
        self._send(json.dumps(dict(job)))

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """True until it has ended."""
        return self._process.poll() is None

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                self._lines.put(event)
        self._lines.put(None)

    def _send(self, line: str) -> None:
        with self._sending, suppress(OSError, ValueError):  # it has ended already
            assert self._process.stdin is not None
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def pause(self) -> None:
        """Finish the step at hand, then wait."""
        self._send("pause")

    def resume(self) -> None:
        """Go on."""
        self._send("resume")

    def stop(self, patience: float = PATIENCE_SECONDS) -> None:
        """Ask it to keep what it has and end; by force after ``patience`` seconds. Returns at once."""
        self._stop_by = time.monotonic() + patience
        self._send("stop")

    def events(self) -> Generator[Event | None, None, Event]:
        """What the process tells, ``None`` now and then in between; returns its last word.

        Raises :class:`InputError` for what it refused and where it was ended from outside, :class:`TrainingError` for
        a bug. Closing the generator leaves the process alone: see :meth:`end`.
        """
        while True:
            try:
                event = self._lines.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                if self._stop_by is not None and time.monotonic() > self._stop_by:
                    self._process.kill()
                yield None
                continue
            if event is None:
                return self._ended()
            if event.get("kind") == "failed":
                text = str(event.get("error"))
                raise TrainingError(f"{text} (see {self._log})") if event.get("bug") else InputError(text)
            if event.get("kind") in ENDS:
                return event
            yield event

    def _ended(self) -> Event:
        code = self._process.wait()
        if self._stop_by is not None:
            return {"kind": "stopped", "result": None}  # by force: what it had written is there
        raise InputError(
            f"The training process was ended from outside (code {code}); what it had learnt is kept, press Resume."
        )

    def end(self) -> None:
        """Make sure that it is gone: kindly at first, by force after :data:`PATIENCE_SECONDS`. Waits."""
        self.stop()
        with self._sending, suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
