"""Masks that name their classes: read by name, in whatever order; refused where a name is none of the recipe's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari_isdnet_training import evaluate as evaluation
from napari_isdnet_training.census import check_dataset, examine
from napari_isdnet_training.config import recipe_from
from napari_isdnet_training.crops import CropDataset
from napari_isdnet_training.datasets import Dataset, open_dataset
from napari_isdnet_training.sampling import CropSampler
from napari_isdnet_training.sources import open_mask, read_mask
from PIL import Image

from napari_isdnet.annotation.exchange import export_labels
from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Patch
from napari_isdnet.classes import to_annotation
from napari_isdnet.exceptions import InputError
from napari_isdnet.progress import result_of
from napari_isdnet.window import Window

CLASSES = ("red", "green", "blue")
SIDE = 64
WHOLE = Window(0, 0, SIDE, SIDE)
TRUTH = np.full((SIDE, SIDE), 2, np.uint8)
TRUTH[:8], TRUTH[8:24], TRUTH[-4:, -4:] = 0, 1, 255


def dataset(
    root: Path, names: tuple[str, ...], mask: np.ndarray[Any, Any], name: str = "a.png", form: str = "png",
    written: str = "mask", **data: Any,
) -> Dataset:  # fmt: skip
    """One image, and class indices ``mask`` of classes ``names`` as 'annotation export' writes them."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(root / "images" / "a.png")
    with AnnotationStore.create(root / "painted", mask.shape, names) as store:
        store.paint(Patch(WHOLE, to_annotation(mask)))
        result_of(export_labels(store, root / "masks" / name, format=form, values=written))
    settings = {"root": str(root), "classes": list(CLASSES), "train": ["a"], **data}
    return open_dataset(recipe_from({"name": "r", "data": settings}).data)


@pytest.mark.parametrize(
    ("name", "form", "written", "values"),
    [
        ("a.png", "png", "mask", "mask"),
        ("a.ome.tif", "ome-tiff", "mask", "mask"),
        ("a.tif", "geotiff", "mask", "mask"),
        ("a.ome.zarr", "ome-zarr", "mask", "mask"),
        ("a.tif", "ome-tiff", "annotation", "mask"),
        ("a.tif", "ome-tiff", "annotation", "annotation"),
    ],
)
def test_masks_with_names_are_read_by_them(tmp_path: Path, name: str, form: str, written: str, values: str) -> None:
    order = np.array([2, 0, 1, *[255] * 253], np.uint8)  # of red, green and blue in the file
    data = dataset(tmp_path, ("green", " Blue", "red"), order[TRUTH], name, form, written, values=values)
    assert not examine(data).problems
    sample, code = data.split("train")[0], data.code
    mask = open_mask(sample.mask, code)
    np.testing.assert_array_equal(read_mask(mask, WHOLE, code, name), TRUTH)
    mask.close()


def test_training_and_judging_go_by_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(tmp_path, ("blue", "green", "red"), np.where(TRUTH < 3, 2 - TRUTH, TRUTH).astype(np.uint8))
    recipe = recipe_from({"name": "r", "crop": {"size": [SIDE, SIDE], "cat_max_ratio": 1.0}})
    samples, census = data.split("train"), check_dataset(data)["train"]
    assert census[0].counts.tolist() == np.bincount(TRUTH.ravel())[:3].tolist()
    plain = recipe.augment.model_copy(update={"flip_horizontal": 0.0})
    sampler = CropSampler(census, recipe.crop, 0)
    crops = CropDataset(samples, sampler, recipe.data, recipe.crop, plain, data.code)
    np.testing.assert_array_equal(crops.pixels(0)[1], TRUTH)
    monkeypatch.setattr(evaluation, "predict_whole", lambda *_: np.minimum(TRUTH, 2))
    network: Any = None
    assert result_of(evaluation.evaluate_samples(network, samples, data, recipe.data)).accuracy == 1


@pytest.mark.parametrize("names", [("red", "green", "roof"), ("red", "Red", "green")])
def test_names_that_the_recipe_has_not_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    (problem,) = examine(dataset(tmp_path, names, TRUTH)).problems
    assert problem.startswith(f"train: Mask a.png has the classes {', '.join(names)}, the recipe red, green, blue:")


def test_a_class_index_without_a_name_is_refused(tmp_path: Path) -> None:
    data = dataset(tmp_path, ("red", "green"), np.minimum(TRUTH, 1))
    path = tmp_path / "masks" / "a.png"
    with Image.open(path) as picture:
        palette, text = picture.getpalette(), picture.text  # type: ignore[attr-defined]
    from PIL.PngImagePlugin import PngInfo

    wrong, info = Image.fromarray(TRUTH), PngInfo()
    wrong.putpalette(palette or [])
    info.add_itxt("classes", text["classes"])
    wrong.save(path, pnginfo=info)
    with pytest.raises(InputError, match=r"Mask a\.png holds class index 2 at row 24, column 0, and names fewer"):
        check_dataset(data)


def test_numbers_in_place_of_names_say_nothing(tmp_path: Path) -> None:
    data = dataset(tmp_path, ("class 0", "class 1", "class 2"), TRUTH)
    assert check_dataset(data)["train"][0].counts.tolist() == np.bincount(TRUTH.ravel())[:3].tolist()
