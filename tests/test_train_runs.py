"""Runs: processes and accumulated parts see one global batch, seeds decide, averages, early stop, a batch of one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from napari_isdnet_training.config import Recipe, recipe_from
from napari_isdnet_training.evaluate import parts_of
from napari_isdnet_training.fakes import make_fake
from napari_isdnet_training.finished import FitResult
from napari_isdnet_training.fit import fit
from napari_isdnet_training.history import read_history
from napari_isdnet_training.identity import up_to_date
from napari_isdnet_training.norms import prepare_norms
from napari_isdnet_training.registry import Network, build
from napari_isdnet_training.state import Average
from safetensors.torch import load_file, save_file
from timm.layers import BatchNormAct2d
from torch import nn

RECIPE = """
name = "tiny"

[data]
layout = "inria"

[crop]
size = [96, 96]

[model]
name = "isdnet-lite0"
pretrained = false
options = { channels = 16, dropout = 0.0, distillation = "exact" }

[optimizer]
lr = 1e-4

[run]
steps = 3
batch = 4
log_every = 1
validate_every = 3
accelerator = "cpu"
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "inria"
    make_fake("inria", root, side=96)
    return root


def plain_recipe(data: Path, seed: int = 0, **run: object) -> Recipe:
    return recipe_from(
        {
            "name": "plain",
            "seed": seed,
            "data": {"layout": "inria", "root": str(data)},
            "crop": {"size": [64, 64]},
            "optimizer": {"lr": 0.05},
            "run": {"steps": 3, "batch": 4, "log_every": 1, "validate_every": 0, "accelerator": "cpu", **run},
        }
    )


def plain_network() -> Network:
    """Without batch statistics and dropout: what a step does is linear in its batch."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    return Network("plain", layers, None)


def trained(recipe: Recipe, output: Path, network: Network | None = None) -> FitResult:
    steps = fit(recipe, output, network=network)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "last.ckpt.safetensors")


def losses(output: Path) -> list[float]:
    return [float(row["loss"]) for row in read_history(output / "log.csv") if "loss" in row]


def assert_parts_are_the_batch(folder: Path) -> None:
    """Runs of one, two and four parts of the same batch, in folders of those names, came to the same."""
    whole = weights(folder / "1")
    for parts in ("2", "4"):
        assert losses(folder / parts) == pytest.approx(losses(folder / "1"), rel=1e-5)
        for key, value in weights(folder / parts).items():
            torch.testing.assert_close(value, whole[key], rtol=1e-4, atol=1e-6)


def test_accumulated_parts_are_the_larger_batch(data: Path, tmp_path: Path) -> None:
    for parts in (1, 2, 4):
        trained(plain_recipe(data, accumulate=parts), tmp_path / str(parts), plain_network())
    assert_parts_are_the_batch(tmp_path)


def test_the_seed_decides(data: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 5), ("again", 5), ("other", 6)):
        trained(plain_recipe(data, seed=seed), tmp_path / name, plain_network())
    one, again, other = (weights(tmp_path / name) for name in ("one", "again", "other"))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert (tmp_path / "one" / "log.csv").read_bytes() == (tmp_path / "again" / "log.csv").read_bytes()
    assert not torch.equal(one["model.net.0.weight"], other["model.net.0.weight"])


def test_a_checkpoint_older_than_a_setting_is_of_the_same_recipe(data: Path) -> None:
    recipe = plain_recipe(data).model_dump()
    recipe["data"]["classes"] = ("background", "building")
    now = recipe_from(recipe).to_dict()
    old = recipe_from(recipe).to_dict()
    del old["data"]["split"], old["augment"]["fill"]
    assert up_to_date(old) == now
    assert up_to_date({**old, "run": {"steps": -1}})["run"] == {"steps": -1}  # compared as it is, and refused


def test_workers_change_no_number(data: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        trained(plain_recipe(data, workers=workers), tmp_path / str(workers), plain_network())
    assert (tmp_path / "0" / "log.csv").read_bytes() == (tmp_path / "2" / "log.csv").read_bytes()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=30), st.floats(0.1, 0.999))
def test_the_average_by_hand(values: list[float], decay: float) -> None:
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(0)
    average, expected = Average(module, decay), 0.0
    for n, value in enumerate(values, start=1):
        module.weight.data.fill_(value)
        average.update(module)
        kept = min(decay, (1 + n) / (10 + n))
        expected = kept * expected + (1 - kept) * value
    assert average.values["weight"].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_the_model_written_is_the_average(data: Path, tmp_path: Path) -> None:
    options = {"channels": 16, "distillation": "sampled", "distillation_points": 16}
    recipe = plain_recipe(data, steps=2, batch=2, ema_decay=0.9).model_dump()
    recipe["model"] |= {"pretrained": False, "options": options}
    trained(recipe_from(recipe), tmp_path / "run")
    state, model = weights(tmp_path / "run"), load_file(tmp_path / "run" / "model.safetensors")
    own = [key for key in model if f"average.net.{key}" in state and model[key].is_floating_point()]
    assert len(own) > 100
    assert all(torch.equal(model[key], state[f"average.net.{key}"]) for key in own)
    assert any(not torch.equal(model[key], state[f"model.net.{key}"]) for key in own)


def test_training_stops_early_and_keeps_the_best(data: Path, tmp_path: Path) -> None:
    recipe = plain_recipe(data, steps=50, validate_every=1, early_stop=2).model_dump()
    recipe["optimizer"]["lr"] = 1e-12  # nothing gets better
    result = trained(recipe_from(recipe), tmp_path / "run", plain_network())
    assert result.steps == 3
    assert "miou" in result.figures


@pytest.mark.parametrize(
    "name", ["isdnet-lite0", pytest.param("isdnet-resnet18", marks=pytest.mark.long), "deeplabv3plus"]
)
def test_a_batch_of_one_trains(name: str, data: Path, tmp_path: Path) -> None:
    options = {"channels": 16, "distillation_points": 16, "distillation": "sampled"}
    if name == "isdnet-resnet18":
        options["shallow"] = "narrow"
    recipe = plain_recipe(data, steps=1, batch=1).model_dump()
    recipe["crop"]["size"] = (160, 160)  # reaches outside of the images, which is ignored
    recipe["model"] |= {"name": name, "pretrained": False, "options": options if name.startswith("isdnet") else {}}
    result = trained(recipe_from(recipe), tmp_path / "run")
    assert result.steps == 1
    assert np.isfinite(losses(tmp_path / "run")).all()
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values())


def test_prepared_norms_change_nothing_but_single_values() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), BatchNormAct2d(4))
    x = torch.randn(2, 3, 5, 5)
    before, names = network(x), list(network.state_dict())
    network[1].reset_running_stats()
    network[3].reset_running_stats()
    prepare_norms(network, 1, True)
    assert torch.equal(network(x), before)
    assert list(network.state_dict()) == names
    assert torch.isfinite(network[:2](x[:1, :, :1, :1])).all()


@given(st.integers(1, 40), st.integers(1, 40))
def test_parts_of_a_large_image_tile_it(height: int, width: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("napari_isdnet_training.evaluate.WHOLE_PIXELS", 100)
        patch.setattr("napari_isdnet_training.evaluate.LARGE_WINDOW", 8)
        counted = np.zeros((height, width), int)
        for seen, own in parts_of((height, width)):
            assert seen.contains(own)
            assert height * width <= 100 or seen.shape == (min(8, height), min(8, width))
            counted[own.slices] += 1
    assert (counted == 1).all()


def run_command(recipe: Path, output: Path, *settings_: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "napari_isdnet_training",
        "fit",
        str(recipe),
        "--output",
        str(output),
        "--json",
    ]
    command += [word for setting in settings_ for word in ("--set", setting)]
    clean = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT")}
    clean |= {"OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=clean)


def small_network() -> nn.Sequential:
    """Plain and timm's batch norms, one of them over a single value per channel and process."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), BatchNormAct2d(5), nn.Conv2d(5, 4, 1),
        nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1),
    )  # fmt: skip


def learn(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """Loss, gradients and buffers of one step."""
    loss = (network(x) - y).square().mean()
    loss.backward()
    found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **found, **{name: b.clone() for name, b in network.named_buffers()}}


def small_batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    # In float64, so that a wrong term is no rounding: norms over two values make gradients of little but that.
    return torch.randn(2, 3, 9, 8).double() + 30, torch.randn(2, 2, 1, 1).double()


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    network = small_network().double()
    prepare_norms(network, 2, True)
    x, y = small_batch()
    found = learn(network, x[rank::2], y[rank::2])
    for name, value in found.items():  # what the wrapper does to gradients, and the log to losses
        if value.is_floating_point() and "running" not in name:
            dist.all_reduce(value)
            value /= 2
    save_file(found, Path(folder) / f"{rank}.safetensors")
    dist.destroy_process_group()


@pytest.mark.slow
def test_shared_statistics_give_the_gradients_of_the_global_batch(tmp_path: Path) -> None:
    expected = learn(small_network().double(), *small_batch())
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name], value, rtol=1e-6, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}"
            )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_train_as_one(data: Path, tmp_path: Path) -> None:
    """By configuration alone: same losses, weights and validation, and one process that talks."""
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE)
    root = f"data.root={data}"
    results = {
        "one": run_command(recipe, tmp_path / "one", root),
        "two": run_command(recipe, tmp_path / "two", root, "run.devices=2"),
        "apart": run_command(recipe, tmp_path / "apart", root, "run.devices=2", "run.sync_batch_norm=false"),
    }
    for name, done in results.items():
        assert done.returncode == 0, f"{name}: {done.stderr[-2000:]}"
        assert len([line for line in done.stdout.splitlines() if line.startswith("{")]) == 1
    # Losses of the first step, before any rounding has grown: with shared statistics they are those of one process.
    first = {name: losses(tmp_path / name)[0] for name in results}
    assert first["two"] == pytest.approx(first["one"], rel=1e-5)
    assert first["apart"] != pytest.approx(first["one"], rel=1e-5)
    # Later ones: an untrained network with norms over few values makes much of the last bit of a gradient.
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=0.03)
    assert weights(tmp_path / "one").keys() == weights(tmp_path / "two").keys()
    assert [set(row) for row in read_history(tmp_path / "one" / "log.csv")] == [
        set(row) for row in read_history(tmp_path / "two" / "log.csv")
    ]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_machines_train_as_one(data: Path, tmp_path: Path) -> None:
    """As on a cluster: the same command on each machine, which is told its number and where the first one is."""
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE)
    trained(recipe_from(tomllib.loads(RECIPE), [f"data.root={data}"]), tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with ThreadPoolExecutor(2) as pool:
        machines = [
            pool.submit(
                run_command, recipe, tmp_path / "two", f"data.root={data}", "run.nodes=2", NODE_RANK=str(n), **where
            )
            for n in range(2)
        ]
    for number, machine in enumerate(machines):
        assert machine.result().returncode == 0, machine.result().stderr[-2000:]
        assert bool(machine.result().stdout) == (number == 0)
    assert losses(tmp_path / "two")[0] == pytest.approx(losses(tmp_path / "one")[0], rel=1e-5)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=0.03)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_fault_is_said_once_by_two_processes(data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE)
    done = run_command(recipe, tmp_path / "run", f"data.root={data}", "run.devices=2", "data.classes=['town']")
    assert done.returncode != 0
    assert done.stderr.count("'town'") == 1
    assert "Traceback" not in done.stderr


def test_networks_of_the_registry_keep_their_layers() -> None:
    network = build("isdnet-lite0", 2, pretrained=False, options={"channels": 16})
    names = list(network.state_dict())
    prepare_norms(network, 2, True)
    assert list(network.state_dict()) == names
    x = torch.randn(2, 3, 64, 64)
    network.eval()
    other = build("isdnet-lite0", 2, pretrained=False, options={"channels": 16}).eval()
    other.load_state_dict(network.state_dict())
    assert torch.equal(network.logits(x), other.logits(x))
