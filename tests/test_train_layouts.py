"""Data layouts: each is read as published, its splits are the published ones, its faults are named, a step trains."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from napari_isdnet_training import crops
from napari_isdnet_training.census import check_dataset, examine
from napari_isdnet_training.cli import app
from napari_isdnet_training.config import Recipe, load_recipe, recipe_names
from napari_isdnet_training.datasets import LAYOUTS, open_dataset
from napari_isdnet_training.fakes import MAKERS, make_fake
from napari_isdnet_training.fit import fit
from napari_isdnet_training.layouts.lists import DEEPGLOBE, INRIA
from napari_isdnet_training.registry import REGISTRY
from napari_isdnet_training.setup import make_network
from napari_isdnet_training.sources import decode_mask, open_mask
from PIL import Image

from napari_isdnet.cli import run
from napari_isdnet.exceptions import InputError
from napari_isdnet.window import Window

PUBLIC = ("deepglobe", "inria", "cityscapes")
# A network that trains in a blink, in place of the recipe's.
QUICK = [
    'model.name="isdnet-lite0"',
    "model.pretrained=false",
    'model.options={channels=16, distillation="sampled", distillation_points=16}',
    "crop.size=[64, 64]",
    "run.steps=1",
    "run.batch=2",
    "run.workers=0",
    'run.accelerator="cpu"',
]


@pytest.fixture(scope="module")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fakes")
    for layout in MAKERS:
        make_fake(layout, root / layout)
    return root


def recipe_for(layout: str, root: Path, *settings: str) -> Recipe:
    if layout in PUBLIC:
        return load_recipe(layout, [f"data.root={root}", *QUICK, *settings])
    own = [f"data.root={root}", "crop.images='epoch'", "run.ema_decay=0.5"]
    if layout == "folder":
        own += [
            "data.layout=folder",
            "data.classes=['field', 'house']",
            "data.train=['a', 'b']",
            "data.validation=['c']",
        ]
    return load_recipe("landcover-lite-six", [*own, *QUICK, *settings])


def names(recipe: Recipe) -> dict[str, list[str]]:
    return {split: [s.name for s in samples] for split, samples in open_dataset(recipe.data).samples.items()}


def test_every_layout_has_a_fake() -> None:
    assert list(MAKERS) == list(LAYOUTS)


@pytest.mark.long
@pytest.mark.parametrize("layout", MAKERS)
def test_a_step_trains_and_validates_on_the_fake(layout: str, fakes: Path, tmp_path: Path) -> None:
    recipe = recipe_for(layout, fakes / layout, "run.validate_every=1")
    found = examine(open_dataset(recipe.data))
    assert found.problems == ()
    assert all(counts.all() for counts in found.counts.values())
    shown = list(fit(recipe, tmp_path / "run"))
    assert [p.stage for p in shown] == ["train", "validate"]
    assert np.isfinite(shown[0].figures["loss"])
    assert 0 <= shown[1].figures["miou"] <= 1
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_splits_are_the_published_ones(fakes: Path) -> None:
    assert {k: len(set(v)) for k, v in DEEPGLOBE.items()} == {"validation": 207, "test": 142}
    assert {k: len(set(v)) for k, v in INRIA.items()} == {"validation": 27, "test": 27}
    for lists in (DEEPGLOBE, INRIA):
        assert not set(lists["validation"]) & set(lists["test"])
    cities = {f"{c}{n}" for c in ("austin", "chicago", "kitsap", "tyrol-w", "vienna") for n in range(1, 37)}
    assert {*INRIA["validation"], *INRIA["test"]} <= cities
    assert names(recipe_for("deepglobe", fakes / "deepglobe")) == {
        "train": ["119", "2334", "3484"], "validation": ["455374"], "test": ["10452"],
    }  # fmt: skip
    assert names(recipe_for("inria", fakes / "inria")) == {
        "train": ["austin6", "chicago7", "kitsap1", "vienna2"], "validation": ["austin8"], "test": ["austin1"],
    }  # fmt: skip
    assert names(recipe_for("inria", fakes / "inria", "data.split=suggested")) == {
        "train": ["austin6", "austin8", "chicago7"], "validation": ["austin1", "kitsap1", "vienna2"],
    }  # fmt: skip
    assert names(recipe_for("cityscapes", fakes / "cityscapes")) == {
        "train": ["aachen_000000_000019", "ulm_000003_000019"], "validation": ["munster_000001_000019"],
    }  # fmt: skip


def test_a_split_can_be_given_by_name_pattern_or_file(fakes: Path, tmp_path: Path) -> None:
    listed = tmp_path / "train.txt"
    listed.write_text("land-train/119_sat.jpg\tland-train/119_mask.png\n455374_sat.jpg\n\n")
    recipe = recipe_for("deepglobe", fakes / "deepglobe", f"data.train=['@{listed}']", "data.validation=['3*']")
    assert names(recipe) == {"train": ["119", "455374"], "validation": ["3484"], "test": []}
    with pytest.raises(InputError, match=r"data\.test names '7', which matches no sample"):
        names(recipe_for("deepglobe", fakes / "deepglobe", "data.test=['7']"))
    with pytest.raises(InputError, match=r"list of samples none\.txt is no file"):
        names(recipe_for("deepglobe", fakes / "deepglobe", "data.test=['@none.txt']"))


def decoded(recipe: Recipe, split: str = "train", number: int = 0) -> np.ndarray:
    dataset = open_dataset(recipe.data)
    sample = dataset.samples[split][number]
    mask = open_mask(sample.mask)
    try:
        window = Window.whole(mask.shape)
        return decode_mask(mask.read(window), dataset.code, sample.mask.name, window)
    finally:
        mask.close()


def test_masks_say_their_classes(fakes: Path, tmp_path: Path) -> None:
    colors = np.asarray(Image.open(fakes / "deepglobe" / "land-train" / "119_mask.png")) >= 128
    # Classes in the published order, each colour as three bits (red, green, blue).
    bits = {0b000: 0, 0b011: 1, 0b110: 2, 0b101: 3, 0b010: 4, 0b001: 5, 0b111: 6}
    expected = np.vectorize(bits.get)(colors @ [4, 2, 1])
    assert np.array_equal(decoded(recipe_for("deepglobe", fakes / "deepglobe")), expected)
    without = recipe_for("deepglobe", fakes / "deepglobe", "data.classes=['water', 'urban']", "data.ignored_in_mean=[]")
    assert np.array_equal(decoded(without), np.select([expected == 5, expected == 1], [0, 1], 255))
    gt = tifffile.imread(fakes / "inria" / "train" / "gt" / "austin6.tif")
    assert np.array_equal(decoded(recipe_for("inria", fakes / "inria")), gt // 255)

    ids = np.asarray(Image.open(next((fakes / "cityscapes" / "gtFine" / "train" / "aachen").iterdir())))
    labels = decoded(recipe_for("cityscapes", fakes / "cityscapes"))
    assert (labels[ids == 1] == 255).all()
    assert (labels[ids == 7] == 0).all()
    assert (labels[ids == 19] == 6).all()
    assert (labels[ids == 33] == 18).all()
    assert set(np.unique(labels)) == {*range(19), 255}
    converted = tmp_path / "cityscapes"
    shutil.copytree(fakes / "cityscapes", converted)
    for path in list(converted.glob("gtFine/*/*/*_labelIds.png")):
        table = np.full(256, 255, np.uint8)
        table[[7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]] = np.arange(19)
        Image.fromarray(table[np.asarray(Image.open(path))]).save(
            path.with_name(path.name.replace("labelIds", "labelTrainIds"))
        )
    for path in list(converted.glob("gtFine/*/*/*_labelIds.png")):
        path.unlink()
    assert np.array_equal(decoded(recipe_for("cityscapes", converted)), labels)


def test_sorted_as_the_authors_sort_them(fakes: Path, tmp_path: Path) -> None:
    for layout, (images, masks, kind) in {
        "deepglobe": ("img_dir", "rgb2id", "jpg"),
        "inria": ("imgs", "labels", "tif"),
    }.items():
        root = tmp_path / layout
        dataset = open_dataset(recipe_for(layout, fakes / layout).data)
        for split, folder in (("train", "train"), ("validation", "val"), ("test", "test")):
            (root / images / folder).mkdir(parents=True)
            (root / masks / folder).mkdir(parents=True)
            for number, sample in enumerate(dataset.samples[split]):
                shutil.copy(sample.image, root / images / folder / f"{sample.name}_sat.{kind}")
                labels = decoded(recipe_for(layout, fakes / layout), split, number)
                Image.fromarray(labels).save(root / masks / folder / f"{sample.name}_mask.png")
        recipe = recipe_for(layout, root)
        assert names(recipe) == names(recipe_for(layout, fakes / layout))
        assert np.array_equal(decoded(recipe), decoded(recipe_for(layout, fakes / layout)))


def spoil(layout: str, root: Path, fault: str) -> None:
    if fault == "color":
        path = root / "land-train" / "119_mask.png"
        pixels = np.asarray(Image.open(path)).copy()
        pixels[3, 5] = (200, 0, 0)
        Image.fromarray(pixels).save(path)
    elif fault == "value":
        path = root / "train" / "gt" / "austin6.tif"
        pixels = tifffile.imread(path)
        pixels[3, 5] = 7
        tifffile.imwrite(path, pixels)
    elif fault == "id":
        path = next((root / "gtFine" / "train" / "ulm").iterdir())
        pixels = np.asarray(Image.open(path)).copy()
        pixels[3, 5] = 77
        Image.fromarray(pixels).save(path)
    elif fault == "mask":
        path = {
            "deepglobe": root / "land-train" / "119_mask.png",
            "inria": root / "train" / "gt" / "austin6.tif",
            "cityscapes": root / "gtFine" / "train" / "ulm" / "ulm_000003_000019_gtFine_labelIds.png",
        }[layout]
        path.unlink()
    else:
        path = root / "train" / "gt" / "austin6.tif"
        tifffile.imwrite(path, np.zeros((50, 60), np.uint8))


@pytest.mark.parametrize(
    ("layout", "fault", "message"),
    [
        ("deepglobe", "color", r"119_mask\.png has the colour #c80000 at row 3, column 5"),
        ("deepglobe", "mask", r"Image 119_sat\.jpg has no mask ID_mask\.png beside it"),
        ("inria", "value", r"austin6\.tif holds 7 at row 3, column 5; allowed in this data set are 0, 255"),
        ("inria", "size", r"austin6\.tif is 50 x 60 pixels but its image"),
        ("inria", "mask", r"Image austin6\.tif has no mask of its name in train/gt"),
        ("cityscapes", "id", r"ulm_000003_000019_gtFine_labelIds\.png holds 77 at row 3, column 5"),
        ("cityscapes", "mask", r"Image ulm_000003_000019_leftImg8bit\.png has no mask \*_gtFine_labelIds\.png"),
    ],
)
def test_faults_are_named_before_training(layout: str, fault: str, message: str, fakes: Path, tmp_path: Path) -> None:
    root = tmp_path / layout
    shutil.copytree(fakes / layout, root)
    spoil(layout, root, fault)
    with pytest.raises(InputError, match=message) as caught:
        next(fit(recipe_for(layout, root), tmp_path / "run"))
    assert "\n" not in str(caught.value)


def test_a_layout_that_is_not_there_is_refused(fakes: Path, tmp_path: Path) -> None:
    for layout in PUBLIC:
        with pytest.raises(InputError, match="holds no"):
            names(recipe_for(layout, fakes / "folder"))
    with pytest.raises(InputError, match=r"'town', which is none of the classes of 'inria'"):
        names(recipe_for("inria", fakes / "inria", "data.classes=['town', 'building']"))
    with pytest.raises(InputError, match=r"data\.values is for own masks"):
        names(recipe_for("inria", fakes / "inria", "data.values=annotation"))
    with pytest.raises(InputError, match="layout 'inria' alone"):
        names(recipe_for("deepglobe", fakes / "deepglobe", "data.split=suggested"))
    few = tmp_path / "few"
    few.mkdir()
    for name in ("119_sat.jpg", "119_mask.png"):
        shutil.copy(fakes / "deepglobe" / "land-train" / name, few)
    with pytest.raises(InputError, match="None of the 1 images"):
        names(recipe_for("deepglobe", few))


def test_a_class_that_no_mask_holds_is_refused(fakes: Path, tmp_path: Path) -> None:
    root = tmp_path / "inria"
    shutil.copytree(fakes / "inria", root)
    for path in (root / "train" / "gt").iterdir():
        tifffile.imwrite(path, np.zeros((128, 128), np.uint8))
    with pytest.raises(InputError, match="Class 'building'"):
        check_dataset(open_dataset(recipe_for("inria", root).data))


@pytest.mark.parametrize("name", [n for n in recipe_names() if n.partition("-")[0] in PUBLIC])
def test_published_recipes_are_the_published_ones(name: str) -> None:
    recipe = load_recipe(name)
    layout, _, published = name.partition("-")
    assert recipe.data.layout == layout
    assert recipe.model.name == ("isdnet-resnet18" if published else "isdnet-paper-resnet18")
    assert recipe.run.steps == {"inria": 40_000, "deepglobe": 80_000, "cityscapes": 160_000}[layout]
    batches = {"inria-published": 4, "cityscapes-published": 16}
    assert recipe.run.batch == batches.get(name, 8)
    crops_of = {"deepglobe": (1224, 1224), "inria": (2500, 2500), "cityscapes": (512, 1024)}
    assert recipe.crop.size == ((2000, 2000) if name == "inria-published" else crops_of[layout])
    assert (recipe.optimizer.name, recipe.optimizer.momentum) == ("sgd", 0.9)
    assert recipe.optimizer.lr == (0.01 if published else 0.001)
    assert (recipe.schedule.policy, recipe.schedule.power) == ("poly", 0.9)
    assert recipe.schedule.floor == (1e-4 if published else 0)
    assert recipe.augment.rotate_probability == (0 if layout == "cityscapes" else 0.5)


@pytest.mark.parametrize("name", [n for n in recipe_names() if n.partition("-")[0] in PUBLIC])
def test_published_recipes_build_their_network(name: str, fakes: Path) -> None:
    root = fakes / name.partition("-")[0]
    recipe = load_recipe(name, [f"data.root={root}", "model.pretrained=false"])
    dataset = open_dataset(recipe.data)
    with torch.device("meta"):  # shapes alone: the layers are those of the recipe without their cost
        network = make_network(recipe, dataset.classes)
    assert network.net.config.num_classes == len(dataset.classes)
    assert network.net.config.flavour == ("reference" if name.endswith("published") else "paper")
    assert recipe.model.name in REGISTRY


@pytest.mark.long
def test_large_images_are_read_by_crops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_fake("folder", tmp_path / "data", side=384)
    read: dict[str, int] = {}
    opened = crops._open_image

    def watched(path: Path) -> Any:
        source = opened(path)
        plain = source.read

        def spy(window: Window, level: int = 0) -> Any:
            read[path.name] = max(read.get(path.name, 0), window.area)
            assert level == 0
            return plain(window, level)

        monkeypatch.setattr(source, "read", spy, raising=False)
        return source

    monkeypatch.setattr(crops, "_open_image", watched)
    settings = ["run.steps=2", "crop.scale=[1.0, 1.0]", "run.validate_every=0"]
    list(fit(recipe_for("folder", tmp_path / "data", *settings), tmp_path / "run"))
    assert read == {"a.ome.zarr": 64 * 64, "b.tif": 64 * 64}


def test_fakes_do_not_overwrite(fakes: Path) -> None:
    with pytest.raises(InputError, match="is there and not empty"):
        make_fake("folder", fakes / "inria")
    with pytest.raises(InputError, match="no layout 'isprs' to fake; allowed are folder"):
        make_fake("isprs", fakes / "new")
    with pytest.raises(InputError, match="at least 64 pixels, got 8"):
        make_fake("folder", fakes / "new", side=8)


def test_check_names_faults_and_classes_that_no_training_mask_holds(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_fake("scenes", tmp_path / "set")
    command = ["check", "landcover-lite-six", "--set", f"data.root={tmp_path / 'set'}"]
    assert run(app, command, "isdnet-train") == 0
    out = capfd.readouterr().out
    assert "train (6)" in out
    assert "No fault." in out
    for number in (1, 2, 3, 5, 6, 7):
        path = tmp_path / "set" / f"scene{number}_classes.png"
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where(mask == 2, 0, mask)).save(path)
    Image.fromarray(mask[:-1]).save(tmp_path / "set" / "scene4_classes.png")
    assert run(app, command, "isdnet-train") == 1
    found = capfd.readouterr()
    assert "Class 'road' (index 2) is in none of the 6 training masks" in found.out
    assert "validation: Mask scene4_classes.png is 127 x" in found.out
    assert "Error: 2 faults of set; see the lines above, and mend them." in found.err
    assert run(app, [*command, "--set", "data.allow_empty_classes=true"], "isdnet-train") == 1
    assert "Error: 1 fault of set; see the line above, and mend it." in capfd.readouterr().err
    assert run(app, [*command, "--set", "data.allow_empty_classes=true", "--set", "data.validation=[]"], "x") == 0
