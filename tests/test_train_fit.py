"""Training: a tiny set is learnt, a cut run goes on bit for bit, faults of the data are named, arithmetic holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from napari_isdnet_training.augment import augment
from napari_isdnet_training.census import check_dataset
from napari_isdnet_training.colors import shift_hsv
from napari_isdnet_training.config import AugmentConfig, CropConfig, Recipe, ScheduleConfig, load_recipe, recipe_from
from napari_isdnet_training.crops import CropDataset, mixed
from napari_isdnet_training.datasets import open_dataset
from napari_isdnet_training.device_crops import DeviceCrops
from napari_isdnet_training.finished import FitResult
from napari_isdnet_training.fit import fit
from napari_isdnet_training.history import read_history
from napari_isdnet_training.registry import build
from napari_isdnet_training.sampling import CropSampler, StepBatches
from napari_isdnet_training.schedule import learning_rate
from PIL import Image
from safetensors.torch import load_file

from napari_isdnet.exceptions import InputError
from napari_isdnet.progress import result_of


def make_data(root: Path, count: int = 2, side: int = 96) -> Path:
    """Images whose left part is red, the rest green, and their masks."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for n in range(count):
        mask = np.zeros((side, side), np.uint8)
        mask[:, side // 3 + 8 * n :] = 1
        image = (
            np.where(mask[..., None] == 0, [200, 40, 40], [40, 200, 40])
            + rng.integers(-55, 56, (side, side, 3)) * mask[..., None]
        )
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"a{n}.png")
        Image.fromarray(mask).save(root / "masks" / f"a{n}.png")
    return root


def tiny(root: Path, size: int = 64, **run: object) -> Recipe:
    return recipe_from(
        {
            "name": "tiny",
            "data": {"root": str(root), "classes": ["red", "green"], "train": ["a[!0]"], "validation": ["a0"]},
            "crop": {"size": [size, size]},
            "augment": {"photometric": False},
            "model": {"pretrained": False, "options": {"channels": 16, "distillation_points": 64}},
            "optimizer": {"lr": 0.02},
            "run": {"steps": 6, "batch": 2, "log_every": 1, "validate_every": 0, "ema_decay": 0.9, **run},
        }
    )


def drain(steps):
    shown = []
    result = result_of(steps, shown.append)
    return shown, result


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_tiny_set_is_learnt(tmp_path: Path) -> None:
    # Crops of 128, so that the deep branch (1/4, then stride 8) has more than one position to normalise over.
    recipe = tiny(
        make_data(tmp_path / "data", side=160), size=128, steps=100, validate_every=100, batch=4, ema_decay=None
    )
    shown, result = drain(fit(recipe, tmp_path / "run"))
    losses = [p.figures["seg"] for p in shown if p.stage == "train"]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert isinstance(result, FitResult)
    assert result.figures["miou"] > 0.8
    assert result.model is not None
    assert result.model.is_file()


@pytest.mark.parametrize("size", [(48, 40), (80, 128)])
def test_crops_finished_on_the_device_are_those_of_the_workers(tmp_path: Path, size: tuple[int, int]) -> None:
    crop = CropConfig(size=size, scale=(0.6, 1.8))
    changes = AugmentConfig(flip_vertical=0.5, quarter_turns=0.5)
    recipe = tiny(make_data(tmp_path / "data"))
    dataset = open_dataset(recipe.data)
    samples, code = dataset.split("train"), dataset.code
    sampler = CropSampler(check_dataset(dataset)["train"], crop, 3)
    whole = CropDataset(samples, sampler, recipe.data, crop, changes, code)
    halves = CropDataset(samples, sampler, recipe.data, crop, changes, code, raw=True)
    images, targets = DeviceCrops(recipe.data, size, torch.device("cpu")).finish([halves[n] for n in range(24)])
    for number in range(24):
        image, target = whole[number]
        assert torch.allclose(images[number], image, atol=1e-4)
        assert torch.equal(targets[number], target)


@pytest.mark.long
def test_a_cut_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    recipe = tiny(make_data(tmp_path / "data"))
    drain(fit(recipe, tmp_path / "whole"))
    steps = fit(recipe, tmp_path / "cut")
    for _ in range(3):
        next(steps)
    steps.close()
    drain(fit(recipe, tmp_path / "cut"))
    one, two = (load_file(tmp_path / n / "last.ckpt.safetensors") for n in ("whole", "cut"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert read_history(tmp_path / "whole" / "log.csv") == read_history(tmp_path / "cut" / "log.csv")


def test_another_recipe_is_not_resumed(tmp_path: Path) -> None:
    root = make_data(tmp_path / "data")
    steps = fit(tiny(root), tmp_path / "run")
    next(steps)
    steps.close()
    with pytest.raises(InputError, match=r"run\.batch was 2, now 4"):
        next(fit(tiny(root, batch=4), tmp_path / "run"))


@pytest.mark.parametrize("name", ["isdnet-lite0", "unet", "deeplabv3plus", "pspnet", "segformer-b0"])
def test_every_network_gives_logits_of_the_images_size(name: str) -> None:
    network = build(name, 3, pretrained=False).eval()
    with torch.no_grad():
        assert network.logits(torch.zeros(1, 3, 70, 101)).shape == (1, 3, 70, 101)
        small = torch.randn(1, 3, 20, 90)  # a chip among the images that validate must not end a training
        assert network.logits(small).shape == (1, 3, 20, 90)


@pytest.mark.parametrize("name", ["isdnet-lite0", "unet"])
def test_ignored_pixels_give_no_gradient(name: str) -> None:
    network = build(name, 3, pretrained=False)
    losses = network.losses(torch.randn(2, 3, 64, 64), torch.full((2, 64, 64), 255))
    losses["seg"].backward()
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("size", "a0.png is 50 x 50 pixels but its image a0.png 96 x 96"),
        ("index", "a0.png holds class index 7"),
        ("pair", "Image a0.png has no mask"),
        ("empty", "a0.png has no labelled pixel"),
        ("absent", "Class 'green' \\(index 1\\) is in none of the 1 training masks"),
    ],
)
def test_faults_of_the_data_are_named(tmp_path: Path, change: str, message: str) -> None:
    root = make_data(tmp_path / "data")
    first = root / "masks" / "a0.png"
    masks = {
        "size": np.zeros((50, 50), np.uint8),
        "index": np.full((96, 96), 7, np.uint8),
        "empty": np.full((96, 96), 255, np.uint8),
    }
    if change == "pair":
        first.unlink()
    elif change == "absent":
        for path in (root / "masks").iterdir():
            Image.fromarray(np.zeros((96, 96), np.uint8)).save(path)
    else:
        Image.fromarray(masks[change]).save(first)
    with pytest.raises(InputError, match=message):
        check_dataset(open_dataset(tiny(root).data))


def test_poly_schedule_by_hand() -> None:
    poly = ScheduleConfig(floor=1e-4)
    assert learning_rate(0, 100, 0.01, poly) == 0.01
    assert learning_rate(50, 100, 0.01, poly) == pytest.approx(1e-4 + (0.01 - 1e-4) * 0.5**0.9)
    assert learning_rate(100, 100, 0.01, poly) == 1e-4
    assert learning_rate(0, 100, 0.01, ScheduleConfig(policy="constant", warmup_steps=3)) == 0.0025


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(32, 32), (24, 40)]))
def test_image_and_mask_move_together(seed: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 5, shape).astype(np.uint8)
    image = np.repeat(mask[..., None].astype(np.float32) * 40, 3, axis=2)
    config = AugmentConfig(flip_vertical=0.5, quarter_turns=0.7, photometric=False)
    moved, labels = augment(image, mask, config, rng, (0, 0, 0))
    assert np.array_equal(moved[..., 0], labels.astype(np.float32) * 40)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.5, 1.5), st.floats(-40, 40), st.integers(0, 1000))
def test_hsv_shift_agrees_with_colorsys(saturation: float, hue: float, seed: int) -> None:
    import colorsys

    pixel = np.random.default_rng(seed).uniform(0, 255, 3)
    h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
    expected = np.array(colorsys.hsv_to_rgb((h + hue / 360) % 1, min(1, s * saturation), v)) * 255
    planes = torch.tensor(pixel, dtype=torch.float32).view(1, 3, 1, 1)
    shifted = shift_hsv(planes, torch.tensor([saturation]), torch.tensor([hue])).flatten().numpy()
    np.testing.assert_allclose(shifted, expected, atol=0.05)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 5))
def test_processes_share_a_global_batch(world: int, accumulate: int, start: int) -> None:
    batch = world * accumulate * 2
    alone = [n for part in StepBatches(start, start + 3, batch, accumulate) for n in part]
    shares = [
        n for r in range(world) for part in StepBatches(start, start + 3, batch, accumulate, r, world) for n in part
    ]
    assert sorted(shares) == alone == list(range(start * batch, (start + 3) * batch))


def test_a_crop_of_nearly_one_class_is_not_mixed() -> None:
    mask = np.zeros((10, 10), np.uint8)
    assert not mixed(mask, 0.75)
    mask[:3] = 1
    assert mixed(mask, 0.75)
    mask[3:] = 255
    assert not mixed(mask, 0.75)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("run.stepz=3", "unknown key 'run.stepz'"),
        ("optimizer.lr=-1", "optimizer.lr: input should be greater than 0, got -1"),
        ("run.accumulate=3", "batch 4 cannot be shared"),
        ("noequals", "KEY=VALUE"),
    ],
)
def test_recipe_errors_are_one_sentence(setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_recipe("landcover-lite", [setting])
    assert "\n" not in str(caught.value)


def test_a_gradient_that_is_not_finite_is_one_sentence(tmp_path: Path) -> None:
    table = tiny(make_data(tmp_path / "data")).to_dict()
    table["optimizer"] |= {"clip_norm": 5.0}
    recipe = recipe_from(table)
    network = build(recipe.model.name, 2, False, recipe.model.options)
    # The loss stays finite, as with a faulty kernel of the backward pass.
    network.net.classifier.out.bias.register_hook(lambda grad: grad * float("inf"))
    before = {k: v.clone() for k, v in network.named_parameters()}
    with pytest.raises(InputError, match=r"gradient is not finite at step 0.*float32"):
        drain(fit(recipe, tmp_path / "run", network=network))
    assert all(torch.equal(before[k], v) for k, v in network.named_parameters())
