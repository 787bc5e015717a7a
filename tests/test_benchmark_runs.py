"""Benchmarks that train, on a tiny scene: what is written, what is skipped, what is measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from napari_isdnet_training.benchmark.ablation import VARIANTS, ablation
from napari_isdnet_training.benchmark.loop import PLACES, LoopOptions, Scene, _places, loop
from napari_isdnet_training.benchmark.output import read_csv
from napari_isdnet_training.benchmark.table import MAJORITY, majority, table
from napari_isdnet_training.cli import main
from napari_isdnet_training.config import Recipe, load_recipe
from napari_isdnet_training.datasets import open_dataset
from napari_isdnet_training.fakes import make_fake
from napari_isdnet_training.presets import BACKBONE

from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.classes import classes_from
from napari_isdnet.exceptions import InputError
from napari_isdnet.model.checkpoint import save_model
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.header import ModelHeader
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.progress import Progress
from tests.benchmark_tools import CLASSES, drain, scene, tiny_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return tiny_recipe(tmp_path)


@pytest.mark.long
def test_the_ablation_appends_skips_and_trains_equal_networks_once(recipe: Recipe, tmp_path: Path) -> None:
    output = tmp_path / "ablation.csv"
    steps = ablation(recipe, output, [7, 6], 1, 1, None, ["command"])
    while len(read_csv(output)) < 2:
        next(steps)
    steps.close()
    first = output.read_text()
    rows = drain(ablation(recipe, output, [7, 6], 1, 1, None, ["command"]))
    assert output.read_text().startswith(first)
    assert len(rows) == len(read_csv(output)) == 11
    assert all(0 <= float(r["miou"]) <= 1 for r in rows)
    # 11 rows, but the whole network stands in both tables
    assert len(list(output.with_suffix(".runs").iterdir())) == 10
    with pytest.raises(InputError, match="allowed are 5, 6, 7"):
        drain(ablation(recipe, output, [4], 1, 1, None, []))


@pytest.mark.slow
def test_one_command_makes_tables_5_to_7_and_goes_on_inside_of_a_run(tmp_path: Path) -> None:
    make_fake("deepglobe", tmp_path / "fake", side=64)
    file = tmp_path / "tiny.toml"
    file.write_text(
        'extends = "deepglobe"\nname = "fake"\n[crop]\nsize = [64, 64]\n[model]\nname = "isdnet-lite0"\n'
        'pretrained = false\noptions = { channels = 16, distillation = "sampled", distillation_points = 16 }\n'
        '[run]\nbatch = 2\nworkers = 0\naccelerator = "cpu"\n'
    )
    output, root = tmp_path / "ablation.csv", f"data.root={tmp_path / 'fake'}"
    steps = ablation(load_recipe(str(file), [root]), output, [5, 6, 7], 2, 1, None, [])
    while len(read_csv(output)) < 1:
        next(steps)
    while "train" not in next(steps).stage:  # one step of the second run is done, one is left
        pass
    steps.close()
    first, folders = output.read_text().splitlines(), {p.name for p in output.with_suffix(".runs").iterdir()}
    assert len(folders) == 2
    command = [
        "benchmark",
        "ablation",
        str(file),
        "--output",
        str(output),
        "--steps",
        "2",
        "--seeds",
        "1",
        "--set",
        root,
    ]
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 0
    rows = read_csv(output)
    assert [(int(r["table"]), r["variant"]) for r in rows] == [(t, v) for t in VARIANTS for v in VARIANTS[t]]
    lines = [line for line in output.read_text().splitlines() if not line.startswith("#")]
    assert lines[: len(first)] == [line for line in first if not line.startswith("#")]
    assert all(0 <= float(r["miou"]) <= 1 and r["recipe"] == "fake" for r in rows)
    kinds = {json.dumps(options, sort_keys=True) for table in VARIANTS.values() for options in table.values()}
    assert folders < {p.name for p in output.with_suffix(".runs").iterdir()}
    assert len(list(output.with_suffix(".runs").iterdir())) == len(kinds)
    before = output.read_bytes()
    with pytest.raises(SystemExit):
        main(command)
    assert output.read_bytes() == before


def test_the_majority_class_is_that_of_training(recipe: Recipe) -> None:
    matrix = majority(open_dataset(recipe.data))
    assert float(matrix.accuracy) == pytest.approx(0.5)
    assert float(matrix.mean_iou) == pytest.approx(0.25)


@pytest.mark.long
def test_the_table_has_a_row_a_network_and_the_majority(recipe: Recipe, tmp_path: Path) -> None:
    output = tmp_path / "table.csv"
    shown: list[Progress] = []
    rows = drain(table(recipe, output, ["isdnet-lite0"], 2, 1, None, []), shown)
    seen = [step.done for step in shown]
    assert seen == sorted(seen)
    assert any(1 < done < 2 for done in seen)  # a run counts by its steps
    assert seen[-1] == 2
    assert [r["network"] for r in rows] == [MAJORITY, "isdnet-lite0"]
    assert float(rows[0]["iou_dark"]) == pytest.approx(0.5)
    assert rows[1]["backbone"] == "scratch"
    assert float(rows[1]["p50_ms"]) > 0
    assert float(rows[1]["gmacs"]) > 0
    again = drain(table(recipe, output, ["isdnet-lite0"], 2, 1, None, []))
    assert again == rows
    with pytest.raises(InputError, match="no network 'glnet'"):
        drain(table(recipe, output, ["glnet"], 1, 1, None, []))


def test_places_are_visited_in_the_order_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, mask = scene(tmp_path, "s", (256, 544), 2)
    sure = torch.full((2, 256, 544), 0.5)
    for number, column in enumerate(range(0, 256, 64)):  # surer and surer to the right
        sure[0, :, column : column + 64] += 0.1 * number + 0.02
    sure[1] = 1 - sure[0]
    monkeypatch.setattr(Scene, "probabilities", lambda *_: sure)
    found = Scene(image, mask, BACKBONE, "cpu", classes_from(CLASSES))
    options = LoopOptions(window=64, places=PLACES)
    with AnnotationStore.create(tmp_path / "a", found.shape, found.classes) as store:
        order = {p: _places(found, store, p, "m", options, np.random.default_rng(0)) for p in PLACES}
    assert order["hardest"][0].column == 0
    assert order["suggested"][0].column in (64, 128)  # neither the surest nor the least sure
    assert order["random"] != order["hardest"]
    assert all(set(windows) == set(order["random"]) for windows in order.values())
    with pytest.raises(InputError, match="no places 'easiest'; known are suggested, random, hardest"):
        LoopOptions(places=("easiest",))


@pytest.mark.slow
def test_the_loop_paints_the_left_half_only_and_goes_on(tmp_path: Path) -> None:
    image, mask = scene(tmp_path, "s", (512, 1040), 2)
    torch.manual_seed(0)
    net = ISDNet(ISDNetConfig.lite(2, channels=16, distillation="sampled", distillation_points=16))
    header = ModelHeader(config=net.config, classes=classes_from(CLASSES), name="m", window=64)
    model = tmp_path / "m.safetensors"
    save_model(net, model, header, half=False)
    options = LoopOptions(rounds=2, share=0.02, steps=2, seeds=1, window=64, device="cpu")
    output = tmp_path / "loop.csv"
    rows = drain(loop(image, mask, output, str(model), options, None, ["command"]))
    assert [r["places"] for r in rows] == ["before", "full", "suggested", "suggested", "random", "random"]
    for row in rows[2:]:
        assert float(row["painted"]) >= 0.02 * 512 * 520 * int(row["round"]) / 2
        assert int(row["strokes"]) >= 1
    (folder,) = (tmp_path / "loop.runs").glob("*/random-0-spread16/annotation")
    store = AnnotationStore.open(folder, read_only=True)
    found = Scene(image, mask, str(model), "cpu")
    assert not store.read_labels(found.right).any()
    labels = store.read_labels(found.left)
    assert (labels[labels > 0] - 1 == found.truth[found.left.slices][labels > 0]).all()
    store.close()
    text = output.read_text()
    drain(loop(image, mask, output, str(model), options, None, ["command"]))
    assert output.read_text() == text


@pytest.mark.slow
def test_the_loop_begins_with_a_backbone_and_classes_of_ones_own(tmp_path: Path) -> None:
    image, mask = scene(tmp_path, "s", (512, 1040), 2)
    options = LoopOptions(rounds=2, share=0.02, steps=2, seeds=1, window=64, device="cpu")
    output = tmp_path / "loop.csv"
    with pytest.raises(InputError, match="name those of the mask in order with --class"):
        next(loop(image, mask, output, "backbone", options, None, []))
    rows = drain(loop(image, mask, output, "backbone", options, None, [], classes_from(["one", "two"])))
    assert [r["places"] for r in rows] == ["full", "suggested", "suggested", "random", "random"]
    assert all(0 <= float(row["miou_right"]) <= 1 for row in rows if row["miou_right"])
    assert rows[0]["miou_right"]
