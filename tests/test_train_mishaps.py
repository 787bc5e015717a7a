"""What goes wrong around a training: masks of odd kinds, folders, restarts, workers, and what is said of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
import torch
from napari_isdnet_training.benchmark.ablation import ablation, summary
from napari_isdnet_training.benchmark.output import check_picture
from napari_isdnet_training.census import examine
from napari_isdnet_training.config import Recipe, load_recipe
from napari_isdnet_training.crops import CropDataset, Failure, collate
from napari_isdnet_training.datasets import open_dataset
from napari_isdnet_training.device_crops import DeviceCrops
from napari_isdnet_training.evaluate import evaluate_samples
from napari_isdnet_training.finetune import finetune
from napari_isdnet_training.fit import fit
from napari_isdnet_training.registry import build
from napari_isdnet_training.sampling import CropSampler
from napari_isdnet_training.sources import MaskCode, open_mask, read_mask
from PIL import Image

from napari_isdnet.engine.labels import open_labels, read_labels
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.world import ProceduralWorld
from napari_isdnet.window import Window
from tests.test_train_fit import drain, make_data, tiny

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
INDICES = np.random.default_rng(3).integers(0, 2, (40, 48)).astype(np.uint8)


def as_training(path: Path, code: MaskCode | None = None) -> np.ndarray:
    mask = open_mask(path)
    found: np.ndarray = read_mask(mask, Window.whole(mask.shape), code or MaskCode(), path.name)
    mask.close()
    return found


def as_engine(path: Path) -> np.ndarray:
    source, _ = open_labels(path)
    found: np.ndarray = read_labels(source, Window.whole(source.shape))
    source.close()
    return found


# -- masks ------------------------------------------------------------------------------------------------------------


def bits_png(path: Path) -> None:
    Image.fromarray(INDICES.astype(bool)).save(path)


def bits_tiff(path: Path) -> None:
    tifffile.imwrite(path, INDICES.astype(bool))


def bits_tiff_of_pillow(path: Path) -> None:
    Image.fromarray(INDICES.astype(bool)).save(path, compression="group4")


def palette_tiff(path: Path) -> None:
    colors = {0: (9, 9, 9, 255), 1: (200, 0, 0, 255)}
    with rasterio.open(path, "w", driver="GTiff", width=48, height=40, count=1, dtype="uint8") as target:
        target.write_colormap(1, colors)
        target.write(INDICES, 1)


def white_is_zero(path: Path) -> None:
    tifffile.imwrite(path, INDICES, photometric="miniswhite")


def palette_png(path: Path) -> None:
    picture = Image.fromarray(INDICES).convert("P")
    picture.putpalette([9, 9, 9, 200, 0, 0] + [0] * 762)
    picture.save(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("m.png", bits_png),
        ("m.tif", bits_tiff),
        ("m.tif", bits_tiff_of_pillow),
        ("m.tif", palette_tiff),
        ("m.tif", white_is_zero),
        ("m.png", palette_png),
    ],
)
def test_masks_of_odd_kinds_are_read_as_they_are_stored(tmp_path: Path, name: str, write: Any) -> None:
    write(tmp_path / name)
    np.testing.assert_array_equal(as_training(tmp_path / name), INDICES)
    np.testing.assert_array_equal(as_engine(tmp_path / name), INDICES)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_grey_png_of_few_bits_holds_indices(tmp_path: Path, bits: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**bits, (20, 24)).astype(np.uint8)
    packed = (
        np.packbits(np.unpackbits(values[..., None], axis=2)[..., -bits:].reshape(20, -1), axis=1).tobytes()
    )  # fmt: skip
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + packed[i : i + 24 * bits // 8] for i in range(0, len(packed), 24 * bits // 8))
    header = struct.pack(">IIBBBBB", 24, 20, bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    np.testing.assert_array_equal(as_engine(tmp_path / "m.png"), values)
    np.testing.assert_array_equal(as_training(tmp_path / "m.png"), values)


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 0), ("int16", -1), ("uint16", 9999)])
@pytest.mark.parametrize("shifted", [False, True])
def test_what_a_mask_declares_as_nodata_is_ignored(tmp_path: Path, dtype: str, nodata: int, shifted: bool) -> None:
    values = (INDICES + 1).astype(dtype)
    values[:5] = nodata
    with rasterio.open(
        tmp_path / "m.tif", "w", driver="GTiff", width=48, height=40, count=1, dtype=dtype, nodata=nodata
    ) as target:
        target.write(values, 1)
    code = MaskCode(values=(255, *range(255))) if shifted else MaskCode()
    found = as_training(tmp_path / "m.tif", code)
    assert (found[:5] == 255).all()
    np.testing.assert_array_equal(found[5:], (INDICES if shifted else INDICES + 1)[5:])


def test_landscapes_beside_masks_of_annotation_values_teach_the_right_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_isdnet_training.layouts.world.cache_folder", lambda: tmp_path / "cache")
    side, root = 256, tmp_path / "data"
    root.mkdir()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(root / "s.png")
    Image.fromarray(np.ones((64, 64), np.uint8)).save(root / "s_classes.png")
    settings = [
        f"data.root={root}", "data.worlds=1", f"data.world_size={side}", 'data.train=["s"]', "data.validation=[]",
    ]  # fmt: skip
    truth = ProceduralWorld((side, side), seed=1001).truth.read(Window(0, 0, side, side))[..., 0]
    for values in ("mask", "annotation"):
        dataset = open_dataset(load_recipe("landcover-lite", [*settings, f"data.values={values}"]).data)
        found = as_training(dataset.samples["train"][-1].mask, dataset.code)
        np.testing.assert_array_equal(found, truth)


# -- folders ----------------------------------------------------------------------------------------------------------


def in_folders(root: Path, *names: str) -> Path:
    for name in names:
        for kind in ("images", "masks"):
            (root / kind / name).mkdir(parents=True)
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(root / "images" / name / f"{name}1.png")
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(root / "masks" / name / f"{name}1.png")
    return root


def split(root: Path, **data: Any) -> dict[str, list[str]]:
    recipe = tiny(root)
    chosen = recipe.data.model_copy(update={"train": (), "validation": (), **data})
    return {name: [s.name for s in samples] for name, samples in open_dataset(chosen).samples.items()}


def test_folders_of_splits_take_val_and_selections_and_refuse_others(tmp_path: Path) -> None:
    root = in_folders(tmp_path, "train", "val", "test")
    assert split(root) == {"train": ["train1"], "validation": ["val1"], "test": ["test1"]}
    chosen = split(root, train=("val1",), validation=("train1",))
    assert chosen == {"train": ["val1"], "validation": ["train1"], "test": []}
    in_folders(tmp_path, "extra")
    with pytest.raises(InputError, match=r"has the folders extra, test, train, val; allowed are"):
        split(root)


def test_two_files_of_one_name_and_a_sample_in_two_splits_are_refused(tmp_path: Path) -> None:
    root = make_data(tmp_path)
    with pytest.raises(InputError, match=r"data\.train and data\.validation both select 'a0'"):
        split(root, train=("*",), validation=("a0",))
    shutil.copy(root / "images" / "a0.png", root / "images" / "a0.jpg")
    with pytest.raises(InputError, match=r"holds a0\.jpg and a0\.png of one name"):
        split(root)


# -- evaluating and checking ------------------------------------------------------------------------------------------


def test_masks_of_another_size_are_refused_before_anything_is_judged(tmp_path: Path) -> None:
    root = make_data(tmp_path)
    for shape in ((120, 96), (60, 96)):
        Image.fromarray(np.zeros(shape, np.uint8)).save(root / "masks" / "a0.png")
        recipe = tiny(root)
        dataset = open_dataset(recipe.data)
        network = build("isdnet-lite0", 2, pretrained=False)
        with pytest.raises(InputError, match=rf"Mask a0\.png is {shape[0]} x 96 pixels but its image a0\.png 96 x 96"):
            next(evaluate_samples(network, dataset.split("validation"), dataset, recipe.data))


def damaged(root: Path) -> None:
    """The last image as a TIFF whose tiles are torn."""
    image = np.asarray(Image.open(root / "images" / "a1.png"))
    (root / "images" / "a1.png").unlink()
    path = root / "images" / "a1.tif"
    tifffile.imwrite(path, image, tile=(32, 32), compression="zlib")
    with tifffile.TiffFile(path) as file:
        offsets = file.pages[0].dataoffsets
    data = bytearray(path.read_bytes())
    for offset in offsets:
        data[offset : offset + 8] = b"\xff" * 8
    path.write_bytes(bytes(data))


def test_a_check_reads_images_and_says_where_there_is_nothing_to_train(tmp_path: Path) -> None:
    root = make_data(tmp_path)
    assert not examine(open_dataset(tiny(root).data)).problems
    nothing = tiny(root).data.model_copy(update={"train": (), "validation": ("*",)})
    assert any("has no train samples" in text for text in examine(open_dataset(nothing)).problems)
    with pytest.raises(InputError, match="has no train samples"):
        next(fit(tiny(root).model_copy(update={"data": nothing}), tmp_path / "run"))
    damaged(root)
    found = examine(open_dataset(tiny(root).data))
    (problem,) = found.problems
    assert found.counts["train"].sum() == 0  # a sample with a fault counts nowhere
    assert problem.startswith("train: a1: cannot read rows 0-")
    assert problem.endswith("repair the file.")  # what only segmenting can skip is no advice here


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_is_one_sentence_from_a_worker_too(tmp_path: Path, workers: int) -> None:
    root = make_data(tmp_path)
    damaged(root)
    with pytest.raises(InputError, match=r"^a1: cannot read rows [^\n]*; repair the file\.$"):
        drain(fit(tiny(root, workers=workers), tmp_path / "run"))


def test_a_failure_takes_the_place_of_its_batch() -> None:
    crops = [(torch.zeros(3, 4, 4), torch.zeros(4, 4)), Failure("broken")]
    assert collate(crops) == Failure("broken")
    assert collate(crops[:1])[0].shape == (1, 3, 4, 4)


# -- restarts ---------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_starting_over_leaves_nothing_of_the_run_before(tmp_path: Path) -> None:
    root, output = make_data(tmp_path / "data"), tmp_path / "run"
    drain(fit(tiny(root, steps=1, validate_every=1), output))
    assert (output / "best.safetensors").is_file()
    steps = fit(tiny(root, steps=2, validate_every=0), output, resume=False)
    next(steps)
    assert {p.name for p in output.iterdir()} <= {".lock", "log.csv"}
    _, result = drain(steps)
    assert (result.best, result.steps) == (None, 2)


def test_a_run_that_failed_at_once_does_not_stand_in_the_way_of_a_corrected_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, output = make_data(tmp_path / "data"), tmp_path / "run"

    def fails(*_: object) -> None:
        raise InputError("something about the rate")

    recipe = tiny(root, steps=1)
    other = recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"lr": 9.0})})
    with monkeypatch.context() as patched:
        patched.setattr("napari_isdnet_training.fit.Run._step", fails)
        with pytest.raises(InputError, match="something about the rate"):
            next(fit(other, output))
    assert drain(fit(recipe, output))[1].steps == 1


def test_a_model_is_not_written_over_the_one_it_starts_from(tmp_path: Path) -> None:
    from napari_isdnet.model.checkpoint import save_model
    from tests.network_tools import lively, small

    image, mask, model = (tmp_path / name for name in ("i.png", "m.png", "mine.safetensors"))
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(image)
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(mask)
    save_model(lively(small(classes=2, channels=16)), model)
    before = model.read_bytes()
    for overwrite in (False, True):
        with pytest.raises(InputError, match="is the model to start from"):
            next(finetune(image, mask, str(model), output=model, overwrite=overwrite))
    assert model.read_bytes() == before


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("seed=99999999999999", "seed"),
        ("run.precision=float16", "precision"),
        ("seed=-1", "seed"),
        ("data.std=[0.0, 1.0, 1.0]", r"data.std.0: input should be greater than 0, got 0.0"),
        ("data.std=[1.0, -2.0, 1.0]", r"data.std.1: input should be greater than 0, got -2.0"),
        ("data.mean=[0.0, nan, 0.0]", "data.mean.1: input should be a finite number, got nan"),
        ("optimizer.lr=inf", "optimizer.lr: input should be a finite number, got inf"),
        ("loss.class_weights=[1.0, -1.0]", "class_weights: must be finite numbers of at least 0"),
        ("loss.class_weights=[1.0, nan]", "class_weights: must be finite numbers of at least 0"),
        ("loss.class_weights=[0.0, 0.0]", "not all of them 0"),
        ("augment.contrast=[-0.5, 1.5]", "contrast: must be two factors of at least 0"),
        ("augment.saturation=[1.5, 0.5]", "saturation: must be two factors .* in ascending order"),
        ("data.classes=['a']", r"data.classes: must name at least two classes, got \['a'\]"),
        ("data.classes=none.txt", r"data.classes: the list of classes none.txt cannot be read"),
        ("data.values=[0, 1]", r"values must be 5 different numbers, one per class, got \[0, 1\]"),
        ("data={classes=['a', 'b'], values=[7, 7]}", "values must be 2 different numbers"),
        ("data={classes=['a', 'b'], values=[0, 300]}", "data.values.1: input should be less than or equal to 255"),
        ("data.values=masks", "data.values: input should be 'mask' or 'annotation', got 'masks'"),
        ("data.train=scene1", r"data.train: must be a list in brackets, such as \[.*\], got 'scene1'"),
        ("crop.size=[64]", r"crop.size.1: there are too few values, got \[64\]"),
        ("run={early_stop=2, validate_every=0}", "early_stop counts validations, and validate_every is 0"),
    ],
)
def test_values_that_cannot_be_used_are_refused(setting: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_recipe("landcover-lite", [setting])


def test_the_largest_seed_trains(tmp_path: Path) -> None:
    recipe = tiny(make_data(tmp_path / "data"), steps=1).model_copy(update={"seed": 2**32 - 1})
    assert drain(fit(recipe, tmp_path / "run"))[1].steps == 1


def test_a_recipe_in_another_encoding_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes('name = "gr\xfcn"'.encode("latin-1"))
    with pytest.raises(InputError, match="save the recipe in UTF-8"):
        load_recipe(str(tmp_path / "r.toml"))


# -- crops on a device, benchmarks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", ["black", "mean"])
def test_crops_that_a_device_finishes_are_the_same_with_rotation_and_scale(tmp_path: Path, fill: str) -> None:
    recipe: Recipe = tiny(make_data(tmp_path, side=160))
    crop = recipe.crop.model_copy(update={"scale": (0.6, 0.9), "size": (64, 64)})
    turning = recipe.augment.model_copy(update={"rotate_probability": 1.0, "fill": fill})
    dataset = open_dataset(recipe.data)
    from napari_isdnet_training.census import check_dataset

    sampler = CropSampler(check_dataset(dataset)["train"], crop, 0)
    made = [
        CropDataset(dataset.split("train"), sampler, recipe.data, crop, turning, dataset.code, raw)
        for raw in (False, True)
    ]
    finisher = DeviceCrops(recipe.data, crop.size, torch.device("cpu"))
    for number in range(6):
        image, mask = made[0][number]  # type: ignore[misc]
        images, masks = finisher.finish([made[1][number]])  # type: ignore[list-item]
        torch.testing.assert_close(images[0], image, atol=1e-4, rtol=0)
        assert torch.equal(masks[0], mask)


def test_an_ablation_that_nothing_would_judge_is_refused_before_it_trains(tmp_path: Path) -> None:
    root = make_data(tmp_path / "data")
    data = tiny(root).data.model_copy(update={"validation": ()})
    recipe = tiny(root).model_copy(update={"data": data})
    with pytest.raises(InputError, match="has no validation samples"):
        next(ablation(recipe, tmp_path / "a.csv", [7], 1, 1, None, []))
    assert not (tmp_path / "a.csv").exists()
    rows = [{"table": 7, "variant": "a", "seed": s, "miou": ""} for s in (0, 1)]
    assert summary(rows) == [{"table": "7", "variant": "a", "seeds": 2, "miou": None, "std": None}]


def test_a_plot_that_cannot_be_written_is_refused_before_measuring(tmp_path: Path) -> None:
    for good in (None, tmp_path / "a.png", tmp_path / "a.SVG"):
        check_picture(good)
    with pytest.raises(InputError, match=r"\.png or \.svg, got 'speedplot'"):
        check_picture(tmp_path / "speedplot")
