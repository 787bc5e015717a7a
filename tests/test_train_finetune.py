"""Fine-tuning: what is painted is learnt, guards hold, a cut run goes on bit for bit, classes go by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from napari_isdnet_training.cli import main
from napari_isdnet_training.finetune import checkpoint_folder, finetune
from napari_isdnet_training.snapshot import Snapshot, take_snapshot
from napari_isdnet_training.starting import class_rows, start_from, with_classes
from napari_isdnet_training.strokecrops import Normaliser, StrokeCrops, check_taught, held_out
from PIL import Image
from safetensors.torch import load_file

from napari_isdnet.annotation.project import Project
from napari_isdnet.annotation.regions import split_store
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Brush, Patch, Rectangle
from napari_isdnet.classes import classes_from
from napari_isdnet.exceptions import InputError, NothingToLearn
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.open import open_source
from napari_isdnet.model.card import model_card
from napari_isdnet.model.checkpoint import load_model, read_header, save_model
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.header import ModelHeader
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.window import Window
from tests import finetune_tools as tools
from tests.test_train_fit import drain

CELL = 184
SIDE = 6 * CELL
CLASSES = ("red", "green")


def truth() -> np.ndarray[Any, Any]:
    labels = np.zeros((SIDE, SIDE), np.uint8)
    labels[(np.add.outer(np.arange(SIDE) // CELL, np.arange(SIDE) // CELL) % 2) == 1] = 1
    return labels


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of smooth red and rough green squares."""
    rng = np.random.default_rng(0)
    colors = (
        np.array([[190, 50, 40], [50, 170, 60]])[truth()] + rng.integers(-50, 51, (SIDE, SIDE, 3)) * truth()[..., None]
    )
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    Image.fromarray(colors.astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network that has learnt nothing."""
    torch.manual_seed(0)
    config = ISDNetConfig.lite(2, channels=16, distillation="sampled", distillation_points=64)
    header = ModelHeader.default(config, classes=classes_from(CLASSES), name="bare", window=128)
    return save_model(ISDNet(config), tmp_path_factory.mktemp("model") / "bare.safetensors", header, half=False)


def paint(store: AnnotationStore) -> None:
    """A stroke in the middle of every square."""
    labels = truth()
    for row in range(CELL // 2, SIDE, CELL):
        for column in range(CELL // 2, SIDE, CELL):
            store.paint(Brush([(row, column - 40.0), (row, column + 40.0)], 8), int(labels[row, column]))


@pytest.fixture(scope="module")
def painted(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project") / "scene.isdnet"
    with Project.open(scene, CLASSES, folder=folder) as project:
        paint(project.store)
    return folder


SMALL: dict[str, Any] = {"device": "cpu", "precision": "float32", "window": 128, "batch": 2, "steps": 6}


@pytest.mark.slow
def test_strokes_are_learnt_and_the_header_says_from_what(scene: Path, painted: Path, tmp_path: Path) -> None:
    options = {**SMALL, "steps": 20, "window": 256}
    output = tmp_path / "out.safetensors"
    shown, result = drain(finetune(scene, painted, "landcover-lite", output=output, **options))
    assert result.model == tmp_path / "out.safetensors"
    assert result.after["miou"] > max(0.9, result.before["miou"])
    assert result.new_classes == CLASSES
    losses = [p.figures["loss"] for p in shown if p.stage == "train"]
    assert len(losses) == result.steps
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert not checkpoint_folder(tmp_path / "out.safetensors").exists()
    header = load_model(result.model).header
    assert header is not None
    assert header.lineage["parent"]["name"] == "landcover-lite"
    with AnnotationStore.open(painted, read_only=True) as store:
        assert header.lineage["annotations"]["position"] == store.position
        assert list(header.lineage["annotations"]["pixels"].values()) == list(store.class_counts())
    assert header.figures["held_out_after"]["miou"] == pytest.approx(result.after["miou"])


@pytest.mark.long
def test_classes_that_are_not_held_out_are_not_in_the_mean(scene: Path, tmp_path: Path) -> None:
    """A model that sees blue everywhere: wrong on what was painted, but there is no figure of blue to judge by."""
    with Project.open(scene, tools.CLASSES, folder=tmp_path / "p.isdnet") as project:
        paint(project.store)
    model = tools.network(tmp_path / "blue.safetensors", sees=2)
    options = {**SMALL, "steps": 1, "allow_worse": True}
    _, result = drain(finetune(scene, tmp_path / "p.isdnet", model, output=tmp_path / "m.safetensors", **options))
    assert result.before == {"miou": 0.0, "iou_red": 0.0, "iou_green": 0.0}


@pytest.mark.long
def test_a_cut_run_goes_on_bit_for_bit_and_a_second_one_is_the_same(
    scene: Path, painted: Path, model: Path, tmp_path: Path
) -> None:
    options = {**SMALL, "allow_worse": True, "seed": 3}
    whole, cut = tmp_path / "whole" / "m.safetensors", tmp_path / "cut" / "m.safetensors"
    drain(finetune(scene, painted, str(model), output=whole, **options))
    for stop in (1, 2, 2):  # after the first validation, then after two steps, twice
        steps = finetune(scene, painted, str(model), output=cut, **options)
        for _ in range(stop):
            next(steps, None)
        steps.close()
    assert checkpoint_folder(cut).is_dir()
    _, result = drain(finetune(scene, painted, str(model), output=cut, **options))
    assert result.model is not None
    one, two = load_file(whole), load_file(cut)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.long
def test_colours_that_were_chosen_by_hand_go_with_the_model(
    scene: Path, painted: Path, model: Path, tmp_path: Path
) -> None:
    options = {**SMALL, "steps": 1, "allow_worse": True}
    for path, chosen, kept in (
        (tmp_path / "plain.safetensors", {}, None),
        (tmp_path / "chosen.safetensors", {"contrast": (0, 200), "channels": (2, 1, 0)}, "0,200"),
    ):
        drain(finetune(scene, painted, str(model), output=path, **options, **chosen))
        wanted = None if kept is None else {"asked": kept, "channels": [2, 1, 0]}
        assert read_header(path).contrast == wanted
    assert read_header(path).contrast_options == "--contrast 0,200 --channels 2,1,0"
    assert "- Images were shown to it with --contrast 0,200 --channels 2,1,0\n" in model_card(read_header(path))


@pytest.mark.long
def test_another_seed_gives_another_model(scene: Path, painted: Path, model: Path, tmp_path: Path) -> None:
    weights = []
    for seed in (0, 1):
        path = tmp_path / f"{seed}.safetensors"
        drain(finetune(scene, painted, str(model), output=path, **{**SMALL, "steps": 1}, seed=seed, allow_worse=True))
        weights.append(load_file(path))
    assert any(not torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_quick_leaves_branches_and_statistics_alone(scene: Path, painted: Path, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "quick.safetensors"
    drain(finetune(scene, painted, str(model), output=path, preset="quick", **{**SMALL, "steps": 2}, allow_worse=True))
    before, after = load_file(model), load_file(path)
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed
    assert not any("running" in k for k in changed)
    assert {k.split(".")[0] for k in changed} == {"fuse8", "classifier"}


@pytest.mark.slow
def test_nothing_is_written_when_the_held_out_regions_get_worse(scene: Path, painted: Path, tmp_path: Path) -> None:
    good = tmp_path / "good.safetensors"
    drain(finetune(scene, painted, "landcover-lite", output=good, **{**SMALL, "steps": 20, "window": 256}))
    wrong = tmp_path / "wrong"
    with AnnotationStore.create(wrong, (SIDE, SIDE), CLASSES) as store:
        labels = truth()
        store.paint(Patch(Window(0, 0, SIDE, SIDE), labels + 1))
        split = split_store(store, 512)  # from now on the same regions judge
        for place in split.training:  # what teaches is wrong, what judges is right
            inside = split.window(place).clipped(store.shape)
            store.paint(Patch(inside, 2 - labels[inside.slices]))
    output = tmp_path / "worse.safetensors"
    options = {**SMALL, "steps": 40, "window": 256, "preset": "thorough"}
    _, result = drain(finetune(scene, wrong, str(good), output=output, **options))
    assert result.model is None
    assert "got worse than" in result.reason
    assert not output.exists()
    _, result = drain(finetune(scene, wrong, str(good), output=output, **options, allow_worse=True))
    assert result.model == output
    assert result.after["miou"] < result.before["miou"]


@pytest.mark.long
def test_changed_annotations_are_not_resumed(scene: Path, model: Path, tmp_path: Path) -> None:
    with Project.open(scene, CLASSES, folder=tmp_path / "p.isdnet") as project:
        paint(project.store)
        steps = finetune(scene, project.store, str(model), output=tmp_path / "m.safetensors", **SMALL)
        next(steps), next(steps)
        steps.close()
        project.store.paint(Rectangle(Window(0, 0, 9, 9)), 1)
        with pytest.raises(InputError, match="the annotations changed"):
            next(finetune(scene, project.store, str(model), output=tmp_path / "m.safetensors", **SMALL))


def test_a_new_class_that_only_judges_is_refused_by_name(scene: Path, model: Path, tmp_path: Path) -> None:
    with Project.open(scene, (*CLASSES, "blue"), folder=tmp_path / "p.isdnet") as project:
        paint(project.store)
        judge = split_store(project.store).validation[0]  # from now on it judges
        project.store.paint(Rectangle(Window(judge[0] * 512, judge[1] * 512, 30, 30)), 2)
        snapshot = take_snapshot(project.store)
    output = tmp_path / "m.safetensors"
    with pytest.raises(NothingToLearn, match="Class 'blue' is painted only in places that are held out"):
        drain(finetune(scene, snapshot, str(model), output=output, **SMALL))
    check_taught(snapshot, CLASSES)  # known classes may be judged by what teaches elsewhere
    assert not checkpoint_folder(output).exists()


@pytest.mark.long
def test_a_class_that_is_only_listed_is_in_the_model_and_said_to_be_untaught(
    scene: Path, model: Path, tmp_path: Path
) -> None:
    with Project.open(scene, ("Red", "green", "blue"), folder=tmp_path / "p.isdnet") as project:
        paint(project.store)
    path = tmp_path / "m.safetensors"
    _, result = drain(
        finetune(scene, tmp_path / "p.isdnet", str(model), output=path, **{**SMALL, "steps": 1}, allow_worse=True)
    )
    header = load_model(path).header
    assert header is not None
    assert result.new_classes == ()
    assert [c.name for c in header.classes] == ["Red", "green", "blue"]
    assert header.lineage["never_taught"] == ["blue"]


def test_held_out_pixels_teach_nothing_and_old_strokes_are_replayed(scene: Path, painted: Path) -> None:
    source = open_source(scene)
    with AnnotationStore.open(painted) as store:
        snapshot = take_snapshot(store)
    pixels = Normaliser(source, IntensityPolicy.from_source(source), (0, 0, 0), (1, 1, 1))
    crops = StrokeCrops(snapshot, pixels, 400, 0, 60)
    labelled = snapshot.read_labels(Window.whole(snapshot.shape)) > 0
    teaches = snapshot.split.mask(Window.whole(snapshot.shape))
    assert snapshot.split.validation
    for number in range(60):
        rng = np.random.default_rng([0, 5, number])
        window = crops.window(number, rng)
        assert window.clipped(snapshot.shape) == window
        _, target = crops[number]
        assert int((target != 255).sum()) == int((labelled & teaches)[window.slices].sum()) > 0
    ages = np.bincount(snapshot.points[:, 0])
    assert (ages > 0).all()  # every stroke can be drawn again, the first one as well as the last
    judged = sum(int((target != 255).sum()) for _, (_, target) in held_out(snapshot, pixels, 300))
    assert judged == int((labelled & ~teaches).sum())
    source.close()


def test_a_snapshot_comes_back_the_same(painted: Path, tmp_path: Path) -> None:
    with AnnotationStore.open(painted) as store:
        snapshot = take_snapshot(store)
        whole = store.read_labels(Window.whole(store.shape))
    snapshot.save(tmp_path / "s.bin")
    again = Snapshot.load(tmp_path / "s.bin")
    assert again.digest == snapshot.digest
    assert again.split == snapshot.split
    assert np.array_equal(again.read_labels(Window.whole(again.shape)), whole)
    (tmp_path / "s.bin").write_bytes((tmp_path / "s.bin").read_bytes()[:-9])
    with pytest.raises(InputError, match="no-resume"):
        Snapshot.load(tmp_path / "s.bin")


def test_classes_go_on_by_name(model: Path) -> None:
    parent = load_model(model, training=True)
    net = with_classes(parent, CLASSES, ("water", "green", "red"))
    rows = class_rows(parent.config)
    assert {"classifier.out.weight", "classifier.out.bias", "deep_classifier.weight"} <= rows
    old, new = parent.state_dict(), net.state_dict()
    for key, value in new.items():
        if key in rows:
            assert torch.equal(value[1], old[key][1])
            assert torch.equal(value[2], old[key][0])
        else:
            assert torch.equal(value, old[key])
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(net.eval()(x).logits[:, [2, 1]], parent.eval()(x).logits, atol=1e-5)


def test_a_backbone_starts_with_the_annotations_classes() -> None:
    start = start_from("backbone", classes_from(["a", "b", "c"]), 0)
    assert start.network.pretrained
    assert start.new_classes == ("a", "b", "c")
    assert start.parent is None
    with pytest.raises(InputError, match="at least two classes"):
        start_from("backbone", classes_from(["a"]), 0)


@pytest.mark.parametrize("values", ["annotation", "mask"])
def test_label_images_of_both_kinds_give_one_snapshot(
    scene: Path, painted: Path, model: Path, tmp_path: Path, values: str
) -> None:
    with AnnotationStore.open(painted, read_only=True) as store:
        labels, expected = store.read_labels(Window.whole(store.shape)), store.class_counts()
    path = tmp_path / "labels.png"
    Image.fromarray(labels if values == "annotation" else labels - np.uint8(1)).save(path)
    steps = finetune(scene, path, str(model), output=tmp_path / "m.safetensors", values=values, **SMALL)
    for progress in steps:
        if progress.stage in ("validate", "train"):
            break
    steps.close()
    snapshot = Snapshot.load(checkpoint_folder(tmp_path / "m.safetensors") / "annotations.bin")
    assert snapshot.class_counts() == expected
    other = "mask" if values == "annotation" else "annotation"
    if values == "mask":
        with pytest.raises(InputError, match="holds 255"):
            drain(finetune(scene, path, str(model), output=tmp_path / "n.safetensors", values=other, **SMALL))


@pytest.mark.long
def test_the_command_trains_from_geojson(scene: Path, model: Path, tmp_path: Path, capsys: Any) -> None:
    def square(row: int, column: int, name: str) -> dict[str, Any]:
        ring = [[column, row], [column + 60, row], [column + 60, row + 60], [column, row + 60], [column, row]]
        return {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"classification": {"name": name}},
        }

    features = [square(10, 10, "red"), square(10, 110, "green"), square(900, 900, "water")]
    path = tmp_path / "drawn.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    arguments = ["finetune", str(scene), str(path), "--output", str(tmp_path / "m.safetensors"), "--model", str(model)]
    arguments += ["--steps", "2", "--window", "128", "--device", "cpu", "--allow-worse", "--json"]
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["new_classes"] == ["water"]
    header = load_model(facts["model"]).header
    assert header is not None
    assert [c.name for c in header.classes] == ["red", "green", "water"]
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "slow"}, "quick or thorough"),
        ({"steps": 0}, "at least one step"),
        ({"values": "colour"}, "'annotation' .* or 'mask'"),
        ({"output": "m.pth"}, "must be named"),
        ({"annotations": "nowhere"}, "no annotations at nowhere"),
    ],
)
def test_bad_input_is_one_sentence(
    scene: Path, painted: Path, model: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    options: dict[str, Any] = {"annotations": painted, "output": tmp_path / "m.safetensors", **SMALL, **change}
    annotations = options.pop("annotations")
    with pytest.raises(InputError, match=message):
        drain(finetune(scene, annotations, str(model), **options))


def test_an_annotation_of_another_size_is_refused(scene: Path, model: Path, tmp_path: Path) -> None:
    with AnnotationStore.create(tmp_path / "small", (600, 600), CLASSES) as store:
        store.paint(Rectangle(Window(0, 0, 20, 20)), 0)
    with pytest.raises(InputError, match="600 x 600 pixels, scene has 1104 x 1104"):
        drain(finetune(scene, tmp_path / "small", str(model), output=tmp_path / "m.safetensors", **SMALL))


@pytest.mark.long
def test_a_model_without_training_heads_trains_too(scene: Path, painted: Path, model: Path, tmp_path: Path) -> None:
    parent = load_model(model)
    assert parent.header is not None
    header = replace(parent.header, config=parent.config)
    bare = save_model(parent, tmp_path / "bare.safetensors", header, training=False)
    shown, _ = drain(
        finetune(
            scene, painted, str(bare), output=tmp_path / "m.safetensors", **{**SMALL, "steps": 1}, allow_worse=True
        )
    )
    assert "seg" in next(p.figures for p in shown if p.stage == "train")
