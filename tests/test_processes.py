"""Processes of one run that something else started: which one speaks, and that none waits for one that has ended."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric import Fabric
from napari_isdnet_training.cli import main
from napari_isdnet_training.config import RunConfig, load_recipe
from napari_isdnet_training.fakes import make_fake
from napari_isdnet_training.fit import fit
from napari_isdnet_training.processes import agree, environment, refuse_others
from napari_isdnet_training.state import read_state

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.lock import alone
from tests.test_train_runs import RECIPE, losses, trained

STARTED = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SHORT = 120
"""Seconds in which a process loads its libraries and ends; who waited for another one would take half an hour."""


def plain_environment() -> dict[str, str]:
    """Without a word of who started this one."""
    words = ("SLURM", "TORCHELASTIC")
    return {k: v for k, v in os.environ.items() if k not in STARTED and not k.startswith(words)}


def slurm(rank: int, count: int, machines: int = 1) -> dict[str, str]:
    """What srun tells a process."""
    each = count // machines
    return {
        "SLURM_JOB_ID": "4711", "SLURM_NTASKS": str(count), "SLURM_STEP_NUM_TASKS": str(count),
        "SLURM_NTASKS_PER_NODE": str(each), "SLURM_NNODES": str(machines), "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank % each), "SLURM_NODEID": str(rank // each),
    }  # fmt: skip


def by_hand(rank: int) -> dict[str, str]:
    """What somebody tells each machine."""
    return {"NODE_RANK": str(rank)}


def say(patch: pytest.MonkeyPatch, told: dict[str, str]) -> None:
    for name in (set(os.environ) - set(plain_environment())).union(STARTED):
        patch.setenv(name, "")  # so that what is set from here on is taken back
        patch.delenv(name)
    for name, value in told.items():
        patch.setenv(name, value)


@pytest.mark.parametrize(
    ("told", "run", "place"),
    [
        ({}, {}, (0, 0)),
        ({"NODE_RANK": "1"}, {"nodes": 2}, (1, 0)),
        ({"LOCAL_RANK": "1"}, {"devices": 2}, (0, 1)),
        (slurm(3, 4, 2), {"devices": 2, "nodes": 2}, (1, 1)),
        (slurm(2, 4, 2), {"devices": 2, "nodes": 2}, (1, 0)),
        (slurm(0, 8) | {"SLURM_STEP_NUM_TASKS": "1"}, {}, (0, 0)),  # one process of a job of any shape
        (slurm(0, 4) | {"SLURM_JOB_NAME": "bash"}, {"devices": 2}, (0, 0)),  # by hand in a shell of SLURM's
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "LOCAL_RANK": "1", "GROUP_RANK": "1", "WORLD_SIZE": "4"},
         {"devices": 2, "nodes": 2}, (1, 1)),
    ],
)  # fmt: skip
def test_which_process_this_is(
    told: dict[str, str], run: dict[str, int], place: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, told)
    where = environment(RunConfig(**run))
    assert (where.node_rank(), where.local_rank()) == place


@pytest.mark.parametrize(
    ("told", "run", "sentence"),
    [
        (slurm(1, 2), {}, r"SLURM started 2 processes, and the recipe is for 1; make run\.devices"),
        (slurm(0, 1), {"devices": 2}, "SLURM started 1 processes, and the recipe is for 2"),
        (slurm(0, 4, 2), {"devices": 4}, "SLURM started these processes in another way .*tasks-per-node"),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0"}, {}, "torchrun started 2 processes"),
    ],
)
def test_more_or_fewer_processes_than_the_recipe_is_for_are_refused(
    told: dict[str, str], run: dict[str, int], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, told)
    with pytest.raises(InputError, match=sentence):
        environment(RunConfig(**run))


@pytest.mark.parametrize(
    "told", [slurm, lambda rank, _: {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": str(rank)}]
)
def test_a_wrong_number_of_processes_is_said_by_the_first_of_them_alone(
    told: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('extends = "landcover-lite-six"\nname = "r"\n')
    codes = []
    for rank in (0, 1):
        say(monkeypatch, told(rank, 2))
        with pytest.raises(SystemExit) as end:
            main(["fit", str(recipe), "--output", str(tmp_path / "run")])
        codes.append(end.value.code or 0)
        said = capsys.readouterr().err
        assert ("started 2 processes, and the recipe is for 1" in " ".join(said.split())) == (rank == 0)
        assert bool(said) == (rank == 0)
    assert codes == [1, 0]
    assert not (tmp_path / "run").exists()


class Started:
    """``isdnet-train fit`` as two processes on this machine, each told its place as some starter would."""

    def __init__(self, recipe: Path, output: Path, places: list[dict[str, str]], *settings: list[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "OMP_NUM_THREADS": "1"}
        self.runs = []
        for rank, place in enumerate(places):
            command = [sys.executable, "-m", "napari_isdnet_training", "fit", str(recipe), "--output", str(output)]
            command += [word for each in settings for word in ("--set", each[rank])]
            self.runs.append(
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                    env=plain_environment() | meet | place,
                )
            )  # fmt: skip

    def ended(self, seconds: float) -> list[tuple[int, str, str]]:
        """Exit code, standard output and errors of each."""
        end = time.monotonic() + seconds
        try:
            said = [run.communicate(timeout=max(1, end - time.monotonic())) for run in self.runs]
        finally:
            for run in self.runs:
                run.kill()
        return [(run.returncode, *each) for run, each in zip(self.runs, said, strict=True)]


def same(setting: str) -> list[str]:
    return [setting, setting]


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if "Error" in line or "Traceback" in line]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("processes") / "inria"
    make_fake("inria", root, side=96)
    return root


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(RECIPE)
    return tmp_path / "tiny.toml"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tasks_of_slurm_train_as_one_and_one_of_them_speaks(data: Path, recipe: Path, tmp_path: Path) -> None:
    tasks = [slurm(0, 2), slurm(1, 2)]
    root = same(f"data.root={data}")
    started = Started(recipe, tmp_path / "run", tasks, root, same("run.devices=2"))
    (first, out, _), (second, nothing, said) = started.ended(600)
    assert (first, second) == (0, 0), said
    assert "model:" in out
    assert nothing == ""
    assert "train" not in said
    assert read_state(tmp_path / "run" / "last.ckpt.safetensors").step == 3
    trained(load_recipe(recipe, [root[0]]), tmp_path / "one")
    assert losses(tmp_path / "run")[0] == pytest.approx(losses(tmp_path / "one")[0], rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("starter", ["slurm", "machines"])
def test_a_run_whose_folder_is_taken_ends_in_all_processes(
    data: Path, recipe: Path, tmp_path: Path, starter: str
) -> None:
    places = [slurm(0, 2), slurm(1, 2)] if starter == "slurm" else [by_hand(0), by_hand(1)]
    shape = same("run.devices=2" if starter == "slurm" else "run.nodes=2")
    with alone(tmp_path / "run", folder=True):
        began = time.monotonic()
        started = Started(recipe, tmp_path / "run", places, same(f"data.root={data}"), shape)
        (first, _, loud), (second, nothing, quiet) = started.ended(SHORT)
    assert time.monotonic() - began < SHORT
    assert first == 1
    assert len(errors(loud)) == 1
    assert "is being written by process" in errors(loud)[0]
    assert nothing == ""
    if starter == "slurm":  # one log for both
        assert (second, errors(quiet)) == (0, [])
    else:
        assert (second, errors(quiet)) == (1, errors(loud))


@pytest.mark.long
def test_what_only_another_machine_lacks_is_said_by_the_first(data: Path, recipe: Path, tmp_path: Path) -> None:
    roots = [f"data.root={data}", f"data.root={tmp_path / 'nowhere'}"]
    started = Started(recipe, tmp_path / "run", [slurm(0, 2, 2), slurm(1, 2, 2)], roots, same("run.nodes=2"))
    (first, _, loud), (second, _, quiet) = started.ended(SHORT)
    assert (first, second) == (1, 1)
    assert errors(loud) == errors(quiet)
    assert f"On {socket.gethostname()}: " in loud
    assert "nowhere" in loud


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_image_that_one_process_cannot_read_ends_all_of_them_and_is_said_once(
    data: Path, recipe: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(data, tmp_path / "other")
    for image in (other / "train" / "images").glob("*.tif"):
        os.truncate(image, image.stat().st_size // 2)
    roots = [f"data.root={data}", f"data.root={other}"]
    started = Started(recipe, tmp_path / "run", [slurm(0, 2), slurm(1, 2)], roots, same("run.devices=2"))
    (first, _, loud), (second, _, quiet) = started.ended(300)
    assert (first, second) == (1, 0)
    assert errors(quiet) == []
    assert len(errors(loud)) == 1
    assert f"Error: On {socket.gethostname()}: " in loud


def test_processes_that_cannot_meet_are_one_sentence(
    data: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        say(monkeypatch, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"})
        with pytest.raises(InputError, match=rf"cannot meet at 127\.0\.0\.1, port {port} .*set MASTER_ADDR"):
            next(fit(load_recipe(recipe, [f"data.root={data}", "run.nodes=2"]), tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="its processes end in other ways")
def test_a_process_that_is_ended_ends_the_others_with_one_sentence(data: Path, recipe: Path, tmp_path: Path) -> None:
    settings = [
        same(f"data.root={data}"),
        same("run.devices=2"),
        same("run.steps=100000"),
        same("run.validate_every=0"),
    ]
    started = Started(recipe, tmp_path / "run", [slurm(0, 2), slurm(1, 2)], *settings)
    log, end = tmp_path / "run" / "log.csv", time.monotonic() + 300
    while not (log.is_file() and len(log.read_text().splitlines()) > 2) and time.monotonic() < end:
        time.sleep(0.2)
    started.runs[1].kill()
    (first, _, loud), _ = started.ended(SHORT)
    assert first == 1
    assert len(errors(loud)) == 1
    assert "Error: Another process of this run has ended: " in loud


def compare(fabric: Fabric, folder: Path) -> None:
    """In each of two processes: go on from the same step, from another, with other data."""
    rank = fabric.global_rank
    said = []
    for own in ((5, "a"), (5 + rank, "a"), (5, "ab"[rank])):
        failure = None
        try:
            refuse_others(fabric, *own, folder)
        except InputError as error:
            failure = error
        try:
            agree(fabric, failure)
            said.append("nothing")
        except InputError as error:
            said.append(f"{type(error).__name__}: {error}")
    (folder / str(rank)).write_text("\n".join(said))


@pytest.mark.long
def test_processes_that_would_go_on_from_other_places_are_refused(tmp_path: Path) -> None:
    Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn").launch(compare, tmp_path)
    first, second = ((tmp_path / str(rank)).read_text().splitlines() for rank in range(2))
    assert first[0] == second[0] == "nothing"
    assert "holds step 6 of a run here, and step 5 where its first process is" in first[1]
    assert "data.root holds other samples or masks here" in first[2]
    for loud, quiet in zip(first[1:], second[1:], strict=True):
        assert loud.replace("InputError: On", "SaidByAnother: On") == quiet
