"""Own data as people have it: binary masks, values of a legend, few images, lists of classes, names left out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from napari_isdnet_training.census import check_dataset, examine
from napari_isdnet_training.cli import app
from napari_isdnet_training.config import Recipe, recipe_from
from napari_isdnet_training.crops import CropDataset
from napari_isdnet_training.datasets import open_dataset
from napari_isdnet_training.fit import fit
from napari_isdnet_training.sampling import CropSampler
from napari_isdnet_training.sources import open_mask, read_mask
from PIL import Image

from napari_isdnet.classes import classes_from
from napari_isdnet.cli import run
from napari_isdnet.exceptions import InputError
from napari_isdnet.model.checkpoint import read_header
from napari_isdnet.model.header import ModelHeader
from napari_isdnet.progress import result_of
from napari_isdnet.window import Window

SIDE = 64


def folder(root: Path, names: str = "abcd", held: tuple[int, int] = (0, 1)) -> Path:
    """Images and masks of two halves that hold these values."""
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for name in names:
        half = np.repeat([held[0], held[1]], SIDE // 2).astype(np.uint8)
        Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(root / "images" / f"{name}.png")
        Image.fromarray(np.tile(half, (SIDE, 1))).save(root / "masks" / f"{name}.png")
    return root


def recipe(root: Path | str, **data: Any) -> Recipe:
    return recipe_from({"name": "own", "data": {"root": str(root), "classes": ["field", "house"], **data}})


def splits(root: Path, **data: Any) -> dict[str, str]:
    return {k: "".join(s.name for s in v) for k, v in open_dataset(recipe(root, **data).data).samples.items()}


def first_row(root: Path, **data: Any) -> list[int]:
    dataset = open_dataset(recipe(root, **data).data)
    sample = dataset.split("train")[0]
    mask = open_mask(sample.mask, dataset.code)
    try:
        return read_mask(mask, Window(0, 0, 1, SIDE), dataset.code, sample.mask.name)[0, :: SIDE // 2].tolist()
    finally:
        mask.close()


def test_a_mask_of_0_and_255_is_read_by_its_values_and_the_refusal_says_so(tmp_path: Path) -> None:
    root = folder(tmp_path, held=(0, 255))
    with pytest.raises(InputError, match=r"Class 'house' .* list what each class holds: data\.values=\[0, 255\]"):
        check_dataset(open_dataset(recipe(root).data))
    assert not examine(open_dataset(recipe(root, values=[0, 255]).data)).problems
    assert first_row(root, values=[0, 255]) == [0, 1]
    assert first_row(root, values=[255, 0]) == [1, 0]


def test_a_legend_may_count_as_it_likes_and_what_it_does_not_list_is_refused(tmp_path: Path) -> None:
    root = folder(tmp_path, held=(40, 10))
    assert first_row(root, values=[10, 40]) == [1, 0]
    Image.fromarray(np.full((SIDE, SIDE), 20, np.uint8)).save(root / "masks" / "a.png")
    (found,) = examine(open_dataset(recipe(root, values=[10, 40], train=["*"]).data)).problems
    assert "a.png holds 20 at row 0, column 0; allowed in this data set are 10, 40, 255" in found


def test_an_image_without_the_chosen_channels_is_a_fault_that_a_check_names(tmp_path: Path) -> None:
    """It would end a training at the first crop of that image, which may come late."""
    root = folder(tmp_path)
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(root / "images" / "c.png")
    data = open_dataset(recipe(root, channels=[2, 1, 0]).data)
    (found,) = examine(data).problems
    assert "Channels 2,1,0 were asked for; c has channels 0 to 0" in found
    with pytest.raises(InputError, match="Channels 2,1,0 were asked for"):
        check_dataset(data)


def test_masks_without_ignored_pixels_get_no_advice_about_them(tmp_path: Path) -> None:
    (found,) = examine(open_dataset(recipe(folder(tmp_path, held=(0, 0))).data)).problems
    assert "255" not in found


@pytest.mark.parametrize("names", ["ab", "abc", "abcd", "abcdefghijkl"])
def test_of_two_or_more_images_some_train_and_some_validate(tmp_path: Path, names: str) -> None:
    found = splits(folder(tmp_path, names))
    assert found["train"]
    assert found["validation"]
    assert sorted(found["train"] + found["validation"]) == list(names)


def test_where_only_others_are_named_the_rest_trains(tmp_path: Path) -> None:
    root = folder(tmp_path, ["a", "b", "c[1]", "d"])
    assert splits(root, validation=["b"], test=["c[1]"]) == {"train": "ad", "validation": "b", "test": "c[1]"}
    assert splits(root, train=["a"]) == {"train": "a", "validation": "", "test": ""}


def test_all_images_without_a_mask_are_named_at_once(tmp_path: Path) -> None:
    root = folder(tmp_path, "abcdefgh")
    for name in "bc":
        (root / "masks" / f"{name}.png").unlink()
    with pytest.raises(InputError, match=r"^Images b\.png, c\.png have no mask of the same name in "):
        open_dataset(recipe(root).data)
    for name in "defgh":
        (root / "masks" / f"{name}.png").unlink()
    with pytest.raises(InputError, match=r"^Images b\.png, c\.png, d\.png, e\.png, f\.png and 2 more have no mask"):
        open_dataset(recipe(root).data)


def test_classes_may_be_a_file_and_the_recipe_keeps_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("field #00ff00\nhouse\n")
    found = recipe(tmp_path, classes=str(tmp_path / "classes.txt"))
    assert found.data.classes == classes_from([("field", "#00ff00"), "house"])
    assert recipe_from(json.loads(json.dumps(found.to_dict()))) == found


def test_the_folder_one_is_in_has_data_and_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder(tmp_path / "town"))
    assert open_dataset(recipe(".").data).name == "town"
    with pytest.raises(InputError, match="does not say where the data is"):
        open_dataset(recipe_from({"name": "own"}).data)


def test_a_mask_of_fractions_is_told_what_it_should_be(tmp_path: Path) -> None:
    root = folder(tmp_path)
    Image.fromarray(np.full((SIDE, SIDE), 0.5, np.float32)).save(root / "masks" / "a.tif")
    (root / "masks" / "a.png").unlink()
    (found,) = examine(open_dataset(recipe(root).data)).problems
    assert "Mask a.tif holds float32 numbers; a mask has class indices" in found


def command(file: Path, root: Path, output: Path) -> list[str]:
    """Writes a recipe of a single step; the command that trains it."""
    file.write_text(
        'name = "own"\n[data]\nclasses = ["field", "house"]\n[crop]\nsize = [64, 64]\n'
        "[model]\npretrained = false\noptions = {channels = 16}\n[run]\nsteps = 1\nbatch = 1\n"
    )
    return ["fit", str(file), "--set", f"data.root={root}", "--output", str(output)]


def test_what_nothing_validates_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "one", "a")
    fit_it = command(tmp_path / "own.toml", root, tmp_path / "run")
    assert run(app, ["check", *fit_it[1:4]], "isdnet-train") == 0
    assert "No sample validates" in capfd.readouterr().out
    assert run(app, fit_it, "isdnet-train") == 0
    assert "No sample validates" in capfd.readouterr().err
    with pytest.raises(InputError, match="has no validation samples"):
        next(fit(recipe_from({**recipe(root).to_dict(), "run": {"early_stop": 2}}), tmp_path / "other"))


def test_a_training_shows_its_loss_and_what_validating_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fit_it = command(tmp_path / "own.toml", folder(tmp_path / "two", "ab"), tmp_path / "run")
    assert run(app, [*fit_it, "--set", "run.validate_every=1"], "isdnet-train") == 0
    said = capfd.readouterr().err
    assert re.search(r"^own: train 100%, loss \d", said, re.M)
    assert re.search(r"^own: validate 100%, mIoU 0\.\d", said, re.M)
    assert "No sample validates" not in said


def written_header(recipe: Recipe, output: Path) -> ModelHeader:
    result = result_of(fit(recipe, output))
    assert result.model is not None
    return read_header(result.model)


def quick(root: Path, **data: Any) -> Recipe:
    table = recipe(root, **data).to_dict()
    table |= {"crop": {"size": [64, 64]}, "model": {"pretrained": False, "options": {"channels": 16}}}
    return recipe_from(table | {"run": {"steps": 1, "batch": 1}})


def test_the_model_says_how_its_images_were_shown(tmp_path: Path) -> None:
    root = folder(tmp_path / "data")
    assert written_header(quick(root), tmp_path / "plain").contrast is None
    header = written_header(quick(root, channels=[2, 1, 0], contrast="0,200"), tmp_path / "run")
    assert header.contrast_options == "--contrast 0,200 --channels 2,1,0"
    with pytest.raises(InputError, match=r"data\.contrast: must be auto, none or LOW,HIGH .*, got '9,1'"):
        recipe(root, contrast="9,1")


def test_crops_are_shown_as_the_recipe_says(tmp_path: Path) -> None:
    root = folder(tmp_path)
    for path in (root / "images").iterdir():
        Image.fromarray(np.full((SIDE, SIDE, 3), (10, 20, 30), np.uint8)).save(path)
    shown = quick(root, channels=[2, 1, 0], contrast="0,510")
    dataset = open_dataset(shown.data)
    sampler = CropSampler(check_dataset(dataset)["train"], shown.crop, 0)
    plain = shown.augment.model_copy(update={"photometric": False})
    crops = CropDataset(dataset.split("train"), sampler, shown.data, shown.crop, plain, dataset.code)
    assert crops.pixels(0)[0][0, 0].tolist() == [15, 10, 5]


@pytest.mark.parametrize(
    ("sizes", "expected"), [((0.5, 0.5, 0.6), 0.5), ((0.5, 0.5, 2.0), None), ((0.5, None, 0.5), None)]
)
def test_the_model_has_the_pixel_size_of_its_images(
    tmp_path: Path, sizes: tuple[float | None, ...], expected: float | None
) -> None:
    root = folder(tmp_path / "data", "abc")
    for name, size in zip("abc", sizes, strict=True):
        (root / "images" / f"{name}.png").unlink()
        facts: dict[str, Any] = {"axes": "YXS"}
        if size is not None:
            facts |= {"PhysicalSizeX": size, "PhysicalSizeY": size, "PhysicalSizeXUnit": "m", "PhysicalSizeYUnit": "m"}
        path = root / "images" / f"{name}.ome.tif"
        tifffile.imwrite(path, np.zeros((SIDE, SIDE, 3), np.uint8), photometric="rgb", metadata=facts)
    own = quick(root, train=["*"])
    assert written_header(own, tmp_path / "run").pixel_size == expected
    assert written_header(quick(root, train=["*"], pixel_size=3.0), tmp_path / "own").pixel_size == 3.0
