"""Ctrl-C at any moment of a training: what is kept is a whole step, and the run goes on as if it had never stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from napari_isdnet_training.config import Recipe
from napari_isdnet_training.fakes import make_fake
from napari_isdnet_training.finetune import checkpoint_folder, finetune
from napari_isdnet_training.fit import fit
from napari_isdnet_training.interrupts import Interrupts
from napari_isdnet_training.registry import Network
from napari_isdnet_training.state import Average, read_state
from napari_isdnet_training.unfinished import STATE
from safetensors.torch import load_file
from torch import nn

from napari_isdnet.annotation.project import Project
from napari_isdnet.exceptions import InputError
from napari_isdnet.model.isdnet import ISDNet
from tests import finetune_tools as tools
from tests.test_train_fit import drain, make_data, tiny
from tests.test_train_runs import RECIPE

CHECKPOINT = "last.ckpt.safetensors"


@pytest.fixture(autouse=True)
def python_answers() -> Iterator[None]:
    """As in a program of its own: workers of pytest-xdist leave Ctrl-C to their parent."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def broken() -> None:
    raise KeyboardInterrupt


def twice() -> None:
    ctrl_c()
    ctrl_c()


def network() -> Network:
    """One with batch statistics, which a forward changes before the step is done."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    return Network("plain", layers, None)


def at_call(number: int, usual: Callable[..., Any], moment: Callable[[], None]) -> Callable[..., Any]:
    """``usual``, with ``moment`` after its call of that ``number``."""
    calls: list[int] = []

    def called(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        found = usual(*arguments, **more)
        if len(calls) == number:
            moment()
        return found

    return called


def equal(one: Path, two: Path) -> bool:
    first, second = load_file(one), load_file(two)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("interrupts") / "data")


def recipe(data: Path) -> Recipe:
    return tiny(data, steps=6, accumulate=2, validate_every=2, checkpoint_every=3)


@pytest.fixture(scope="module")
def whole(data: Path) -> Path:
    """The checkpoint of a run that nobody interrupted."""
    drain(fit(recipe(data), data.parent / "whole", network=network()))
    return data.parent / "whole" / CHECKPOINT


# In the second of two parts of the fifth step; between its optimiser and the average; while a validation of step 4 puts
# the averaged weights in; and while it puts the network's own back. Ctrl-C waits for the end of the step; a second one
# does not, nor does what Python cannot hold back: then the last checkpoint stays.
@pytest.mark.parametrize(
    ("owner", "name", "call", "moment", "kept"),
    [
        (Network, "forward", 10, ctrl_c, 5),
        (Network, "forward", 10, broken, 3),
        (Network, "forward", 10, twice, 3),
        (Average, "update", 5, ctrl_c, 5),
        (Average, "update", 5, broken, 3),
        (Network, "load_state_dict", 3, ctrl_c, 4),
        (Network, "load_state_dict", 3, broken, 4),
        (Network, "load_state_dict", 4, ctrl_c, 4),
        (Network, "load_state_dict", 4, broken, 3),
    ],
)
def test_a_run_that_is_interrupted_anywhere_goes_on_as_if_it_had_not_been(
    owner: Any, name: str, call: int, moment: Callable[[], None], kept: int,
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, at_call(call, getattr(owner, name), moment))
        with pytest.raises(KeyboardInterrupt):
            drain(fit(recipe(data), tmp_path, network=network()))
    assert read_state(tmp_path / CHECKPOINT).step == kept
    drain(fit(recipe(data), tmp_path, network=network()))
    assert equal(tmp_path / CHECKPOINT, whole)


def test_workers_leave_ctrl_c_to_the_process_that_trains(data: Path, tmp_path: Path) -> None:
    steps = fit(tiny(data, steps=2, workers=1), tmp_path, network=network())
    next(steps)
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
    assert drain(steps)[1].steps == 2


@pytest.mark.skipif(sys.platform == "win32", reason="its processes end in other ways")
def test_a_worker_that_dies_is_one_sentence_and_loses_no_step(data: Path, whole: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"accumulate": 2, "validate_every": 2, "checkpoint_every": 100, "workers": 2}
    steps = fit(tiny(data, steps=6, **settings), tmp_path, network=network())
    for _ in range(4):
        next(steps)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid or 0, signal.SIGKILL)
    time.sleep(0.5)  # within a step, for all that is known
    with pytest.raises(InputError, match=r"A process that reads crops was ended, .*lower run\.workers"):
        drain(steps)
    assert read_state(tmp_path / CHECKPOINT).step >= 3
    drain(fit(tiny(data, steps=6, **settings), tmp_path, network=network()))
    assert equal(tmp_path / CHECKPOINT, whole)


@pytest.mark.long
@pytest.mark.parametrize(("moment", "kept"), [(ctrl_c, 3), (broken, 1)])
def test_fine_tuning_that_is_interrupted_within_a_step_goes_on_as_if_it_had_not_been(
    moment: Callable[[], None], kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_isdnet_training.tuning.SAVE_SECONDS", 1e9)  # after the first step, then at the end
    picture, model = tools.scene(tmp_path / "scene.png"), tools.network(tmp_path / "bare.safetensors")
    with Project.open(picture, ("red", "other"), folder=tmp_path / "p.isdnet") as project:
        tools.paint(project.store)
    options: dict[str, Any] = {**tools.TINY, "steps": 4, "preset": "thorough", "held_out": 0.0, "spread": 0}

    def run(name: str) -> Iterator[Any]:
        return finetune(picture, tmp_path / "p.isdnet", str(model), output=tmp_path / name, device="cpu", **options)

    list(run("whole.safetensors"))
    cut = tmp_path / "cut.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(ISDNet, "losses", at_call(3, ISDNet.losses, moment))
        with pytest.raises(KeyboardInterrupt):
            list(run(cut.name))
    assert read_state(checkpoint_folder(cut) / STATE).step == kept
    list(run(cut.name))
    assert equal(cut, tmp_path / "whole.safetensors")


def test_handlers_are_put_back_and_those_of_the_system_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    reached: list[str] = []

    def hold(interrupts: Interrupts, moment: Callable[[], None]) -> None:
        with interrupts.held():
            with interrupts.held():  # of a step of several processes, which answer together
                moment()
            assert interrupts.came
            reached.append("end")
            assert signal.getsignal(signal.SIGTERM) == before[1]

    for moment, urgent, ends in ((ctrl_c, False, 1), (twice, True, 0)):
        reached.clear()
        interrupts = Interrupts()
        with pytest.raises(KeyboardInterrupt):
            hold(interrupts, moment)
        assert (interrupts.urgent, interrupts.came, len(reached)) == (urgent, False, ends)
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


WAITING = """
import os, subprocess, sys
import torch.distributed as dist
from napari_isdnet_training.interrupts import launching

with launching():
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
    print(child.pid, flush=True)
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=0, world_size=2)
"""
FOLLOWER = """
import time

time.sleep(2)  # what imports take; Ctrl-C reaches it by then
from napari_isdnet_training.interrupts import follow

follow()
time.sleep(600)
"""


def ended(pid: int) -> bool:
    """True once a process that is nobody's child any more, or never was ours, is gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


def all_ended(group: int) -> bool:
    """True once no process of a group is there."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def within(seconds: float, question: Callable[[], bool]) -> bool:
    """Whether it is answered with yes in that time."""
    end = time.monotonic() + seconds
    while not question():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux which processes there are")
def test_ctrl_c_ends_processes_that_wait_for_one_another(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", WAITING, FOLLOWER, str(tmp_path / "meet")]
    first = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert first.stdout is not None
        follower = int(first.stdout.readline())
        time.sleep(1)  # for the first one to wait in C++
        os.killpg(first.pid, signal.SIGINT)
        _, said = first.communicate(timeout=120)
        assert (first.returncode, said) == (130, "Error: Interrupted; run the same command again.\n")
        assert within(60, lambda: ended(follower))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_several_processes_stop_together_and_go_on_as_if_they_had_not(tmp_path: Path) -> None:
    """Ctrl-C in a terminal reaches all of them, here in a step and in a validation: one says so, and none stays."""
    make_fake("inria", tmp_path / "data", side=384)
    (tmp_path / "tiny.toml").write_text(RECIPE)
    clean = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT")}

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "napari_isdnet_training", "fit", str(tmp_path / "tiny.toml")]
        command += ["--output", str(tmp_path / name)]
        for setting in (f"data.root={tmp_path / 'data'}", "run.devices=2", "run.steps=6"):
            command += ["--set", setting]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env=clean | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def reached(run: subprocess.Popen[str], lines: int) -> bool:
        log = tmp_path / "cut" / "log.csv"
        return (log.exists() and len(log.read_text().splitlines()) >= lines) or run.poll() is not None

    kept = 0
    for lines in (2, 4):  # a step is logged as it ends; the second time, a validation of the third one begins
        run = start("cut")
        assert within(600, partial(reached, run, lines))
        time.sleep(0.3)
        os.killpg(run.pid, signal.SIGINT)
        _, said = run.communicate(timeout=300)
        assert run.returncode == 130, said
        errors = [text for text in said.splitlines() if "rror" in text or "Traceback" in text]
        assert errors == ["Error: Stopped; run the same command to go on."]
        assert within(10, partial(all_ended, run.pid))
        before, kept = kept, read_state(tmp_path / "cut" / CHECKPOINT).step
        assert kept > before
    for name in ("cut", "whole"):
        run = start(name)
        _, said = run.communicate(timeout=900)
        assert run.returncode == 0, said
    assert equal(tmp_path / "cut" / CHECKPOINT, tmp_path / "whole" / CHECKPOINT)
