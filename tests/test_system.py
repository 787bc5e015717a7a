"""What differs between operating systems, played on the one that runs the tests."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from napari_isdnet_training.state import Average, RunState, load_state, save_state
from torch import nn, optim

from napari_isdnet import cli, system
from napari_isdnet.annotation.container import commit
from napari_isdnet.annotation.project import project_folder
from napari_isdnet.engine import job
from napari_isdnet.engine.batch import BatchQueue
from napari_isdnet.engine.segment import segment
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import remove, write_atomic
from napari_isdnet.io.shards import Shards
from napari_isdnet.model.card import export_model
from napari_isdnet.model.checkpoint import load_model, save_model
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.progress import result_of
from napari_isdnet.system import command_line, move, shell_line, unlink
from napari_isdnet.widgets._finetune_process import TrainingProcess
from tests.network_tools import picture, small, source_of
from tests.segment_tools import PLAIN, four_classes


@pytest.fixture
def as_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are open or mapped are neither moved nor removed."""
    monkeypatch.setattr(system, "WINDOWS", True)
    monkeypatch.setattr(system, "PATIENCE_SECONDS", 0.5)
    for name in ("replace", "unlink"):
        monkeypatch.setattr(os, name, guarded(getattr(os, name)))


def guarded(do: Callable[..., None]) -> Callable[..., None]:
    def act(*paths: Path, dir_fd: int | None = None) -> None:
        folder = "" if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
        if any(in_use(Path(folder, path)) for path in paths):
            raise PermissionError(13, "Access is denied", str(paths[-1]))
        do(*paths, **({} if dir_fd is None else {"dir_fd": dir_fd}))

    return act


def in_use(path: Path) -> bool:
    name = os.path.realpath(path)
    mapped = any(line.rstrip().endswith(name) for line in Path("/proc/self/maps").read_text().splitlines())
    return mapped or any(os.path.realpath(link) == name for link in Path("/proc/self/fd").iterdir())


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux which files are in use")


@contextmanager
def open_for(seconds: float, path: Path) -> Iterator[None]:
    """``path`` is open elsewhere at first."""
    with path.open("rb") as file:
        late = threading.Timer(seconds, file.close)
        late.start()
        yield
        late.join()


@linux
@pytest.mark.usefixtures("as_on_windows")
def test_windows_waits_for_who_reads_what_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "queue.json"
    path.write_bytes(b"before")
    with open_for(0.1, path):
        write_atomic(path, b"after")
    assert path.read_bytes() == b"after"
    with open_for(0.1, path):
        commit(tmp_path, {"queue.json": None})
    assert list(tmp_path.iterdir()) == []


@linux
@pytest.mark.usefixtures("as_on_windows")
def test_windows_waits_for_who_reads_in_a_folder_that_goes(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "model").write_bytes(b"weights")
    with open_for(0.1, tmp_path / "run" / "b" / "model"):
        remove(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    remove(tmp_path / "run")


@linux
@pytest.mark.usefixtures("as_on_windows")
def test_windows_reads_what_is_replaced_in_the_same_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = Shards(tmp_path, (8, 8), (8, 8), (8, 8), 255)
    shards.write((0, 0), np.ones((8, 8), np.uint8))
    open_now, replacing = Path.open, [1, 2]

    def open_later(path: Path, *how: Any, **more: Any) -> Any:
        if replacing and replacing.pop():
            raise PermissionError(13, "Permission denied", str(path))
        return open_now(path, *how, **more)

    monkeypatch.setattr(Path, "open", open_later)
    assert (shards.read((slice(0, 8), slice(0, 8))) == 1).all()


@linux
@pytest.mark.usefixtures("as_on_windows")
def test_windows_waits_for_who_reads_a_shard_that_goes(tmp_path: Path) -> None:
    shards = Shards(tmp_path, (8, 8), (8, 8), (8, 8), 255)
    shards.write((0, 0), np.ones((8, 8), np.uint8))
    with open_for(0.1, shards.path((0, 0))):
        assert not shards.write((0, 0), np.full((8, 8), 255, np.uint8))
    assert not shards.path((0, 0)).exists()


@linux
@pytest.mark.usefixtures("as_on_windows")
def test_windows_does_not_wait_forever(tmp_path: Path) -> None:
    path = tmp_path / "open.json"
    path.write_bytes(b"before")
    with path.open("rb"), pytest.raises(InputError, match=r"open\.json cannot be written .Access is denied"):
        write_atomic(path, b"after")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("open.json", b"before")]


@linux
def test_elsewhere_nothing_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "WINDOWS", False)
    monkeypatch.setattr(system.time, "sleep", lambda _: pytest.fail("waited"))

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        move(tmp_path / "a", tmp_path / "b")
    unlink(tmp_path / "nothing")


@linux
@pytest.mark.usefixtures("as_on_windows")
def test_a_run_that_goes_on_replaces_the_checkpoint_it_came_from(tmp_path: Path) -> None:
    def made() -> tuple[nn.Module, optim.Optimizer, Average]:
        module = nn.Linear(3, 2)
        return module, optim.SGD(module.parameters(), lr=0.1, momentum=0.9), Average(module, 0.9)

    path, state = tmp_path / "last.ckpt.safetensors", RunState(recipe={})
    module, optimizer, average = made()
    module(torch.ones(3)).sum().backward()
    optimizer.step()
    save_state(path, state, module, optimizer, average)
    again = made()
    load_state(path, *again)
    save_state(path, state, *again)
    assert again[1].state_dict()["state"][0]["momentum_buffer"].tolist() == [[1.0] * 3] * 2


@linux
@pytest.mark.usefixtures("as_on_windows")
def test_a_model_is_exported_over_itself(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_model(ISDNet(small()), path)
    export_model(path, path)
    assert load_model(path).header.name == "mine"


@linux
@pytest.mark.usefixtures("as_on_windows")
def test_a_job_leaves_no_maps_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "RAM_MAPS", 0)
    seen = []
    steps = segment(source_of(picture((64, 96))), four_classes(), output=tmp_path, **PLAIN)
    result_of(steps, lambda _: seen.extend(tmp_path.glob("*.job/maps/*.map")))
    assert len(set(seen)) == 6
    assert list(tmp_path.glob("*.job/maps")) == []


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("image.tif", "image.tif"),
        (r"C:\data\scene.tif", r"C:\data\scene.tif"),
        (r"C:\my data\scene.tif", r'"C:\my data\scene.tif"'),
        ("R&D.tif", '"R&D.tif"'),
        ("0,0,16,16", '"0,0,16,16"'),
        ("C:\\my data\\", '"C:\\my data\\\\"'),
        ('a "b"', '"a \\"b\\""'),
        ("", '""'),
    ],
)
def test_a_command_to_copy_on_windows(word: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "WINDOWS", False)
    assert system.shlex.split(shell_line(["x", word])) == ["x", word]
    monkeypatch.setattr(system, "WINDOWS", True)
    assert shell_line(["x", word]) == f"x {line}"
    if " " in word or not word:  # what the library quotes, too
        assert subprocess.list2cmdline(["x", word]) == f"x {line}"


@pytest.mark.parametrize(("windows", "seen"), [(True, ["info", "a 1.png", "a2.png", "b?.png"]), (False, None)])
def test_patterns_of_files_are_found_where_no_shell_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, windows: bool, seen: list[str] | None
) -> None:
    typed = ["info", "a*.png", "b?.png"]
    for name in ("a2.png", "a 1.png", "c.png"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["napari-isdnet", *typed])
    monkeypatch.setattr(system, "WINDOWS", windows)
    command = SimpleNamespace(main=lambda words, **_: told.append(words))
    told: list[list[str]] = []
    monkeypatch.setattr(cli, "_command", lambda _: command)
    assert cli.run(cli.app, None, "napari-isdnet") == 0
    assert told == [seen or typed]


@pytest.mark.parametrize("caseless", [True, False])
def test_names_that_differ_by_capitals_are_one_where_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caseless: bool
) -> None:
    monkeypatch.setattr(system, "CASELESS", caseless)
    queue = BatchQueue(tmp_path)
    assert len(queue.add(["/one/a.tif", "/ONE/A.TIF"] if caseless else ["/one/a.tif"])) == 1
    refused = pytest.raises(InputError, match="one name, 'A'") if caseless else nullcontext()
    with refused:
        queue.add(["/two/A.png"])
    cli.run(cli.app, ["segment", "one/a.tif", "ONE/A.TIF", "two/A.png", "--output", str(tmp_path)], "napari-isdnet")
    one, two = Path("one/a.tif"), Path("two/A.png")
    assert (f"{one} and {two} have one name, 'A'" in capsys.readouterr().err) == caseless
    folders = {project_folder(Path(f"/no/such/place/{name}"), {}).name[-19:] for name in ("a.tif", "A.tif")}
    assert len(folders) == 2 - caseless


def test_the_process_that_trains_leaves_standard_input_and_the_processor_to_others(tmp_path: Path) -> None:
    code = """
import os, psutil, subprocess, sys
from stat import S_ISFIFO
from napari_isdnet_training import worker

def train(job, orders, emit):
    look = "import os; from stat import S_ISFIFO; print(S_ISFIFO(os.fstat(0).st_mode))"
    child = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True).stdout.strip()
    piped, nice = S_ISFIFO(os.fstat(0).st_mode), psutil.Process().nice()
    later = nice == psutil.BELOW_NORMAL_PRIORITY_CLASS if sys.platform == "win32" else nice >= worker.NICENESS
    emit({"kind": "started", "piped": piped, "in a child": child, "later": later, "job": job})
    orders.stopped.wait(30)
    emit({"kind": "stopped", "result": None})

worker.train = train
sys.exit(worker.main())
"""
    process = TrainingProcess({"a": 1}, tmp_path / "log", [sys.executable, "-c", code])
    events = (event for event in process.events() if event is not None)
    said = {"piped": False, "in a child": "False", "later": True, "job": {"a": 1}}
    assert next(events) == {"kind": "started", **said}
    process.stop()
    process.end()


def test_a_lock_names_a_machine_in_any_alphabet(tmp_path: Path) -> None:
    """Where text files are no UTF-8 unless asked for, as on Windows."""
    code = """
import socket, sys
from pathlib import Path
from napari_isdnet.annotation.lock import FolderLock
from napari_isdnet.exceptions import InputError

socket.gethostname = lambda: "\\u041f\\u041a"
lock = FolderLock(Path(sys.argv[1]))
try:
    FolderLock(Path(sys.argv[1]))
except InputError as error:
    print(ascii(str(error)))
lock.release()
"""
    plain = os.environ | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    told = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=plain, capture_output=True, text=True)
    assert " on \\u041f\\u041a); close it there first" in told.stdout, told.stderr


def test_a_program_that_leaves_does_what_is_due_and_searches_no_garbage() -> None:
    """With torch loaded the searches take seconds."""
    code = """
import atexit, gc, sys
from napari_isdnet.system import leave

class Ring:
    def __init__(self):
        self.me = self
    def __del__(self):
        print("found")

gc.disable()  # none by chance
Ring()
gc.enable()
atexit.register(print, "due")
(leave if sys.argv[1] == "leave" else sys.exit)(3)
"""
    for how, said in (("leave", "due\n"), ("exit", "due\nfound\n")):
        done = subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (3, said), done.stderr


def test_a_command_names_what_was_chosen_otherwise_than_usual() -> None:
    options = {
        "output": Path("a"), "min_area": 1, "simplify": 2.0, "scale": 0.123456789, "roi": None, "seed": 0,
        "channels": (2, 1, 0), "format": ["png", "geotiff"], "allow_worse": True, "json": False,
    }  # fmt: skip
    assert command_line(["run", "b.tif"], options, {"min_area": 1, "simplify": 0.0}) == (
        "run b.tif --output a --simplify 2 --scale 0.123456789 --seed 0 --channels 2,1,0 --format png --format geotiff"
        " --allow-worse"
    )
