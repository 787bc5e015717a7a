"""Whole-image inference against the one-shot forward of the same network."""

from pathlib import Path

import numpy as np
import pytest
import torch

from napari_isdnet.engine.device import Placement, prepare
from napari_isdnet.engine.patches import PatchReader
from napari_isdnet.engine.streaming import StreamOptions, WholeImage
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.window import Grid, Window
from tests.network_tools import lively, picture, policy_of, small, source_of

CPU = Placement(torch.device("cpu"), torch.float32)
NETWORKS = {
    "reference": small(),
    "paper": small("paper"),
    "lite": small(deep="tf_efficientnet_lite0", deep_filter="lowpass", channels=16),
    "lite twice": small(
        deep="tf_efficientnet_lite0", shallow="tf_efficientnet_lite0", residual_levels=3, deep_filter="lowpass"
    ),
    "pspnet": small(deep_head="pspnet", fusion="cat_ca", classes=3),
    "cheap": small(fusion="add", context_first=True, deep_stride=16, shallow_kernel=1, shallow_input="rgb", classes=3),
    "single": small(fusion="raf_single", residual_levels=3, downscale=2, channels=16),
}


def streamed(model: ISDNet, image: np.ndarray, **options: object) -> WholeImage:
    reader = PatchReader(source_of(image), policy_of(image), model)
    whole = WholeImage(prepare(model, CPU), reader, CPU, StreamOptions(**options))  # type: ignore[arg-type]
    fractions = [step.fraction for step in whole.prepare()]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1)
    return whole


def all_logits(whole: WholeImage, step: int = 300) -> torch.Tensor:
    """Logits of the whole image, asked for in windows that agree with nothing."""
    shape = whole.sizes.image
    result = torch.zeros(1, whole.model.config.num_classes, *shape)
    for window in Grid(shape, (step, step)):
        result[(..., *window.slices)] = whole.logits(window)
    return result


@torch.inference_mode()
def one_shot(model: ISDNet, image: np.ndarray) -> torch.Tensor:
    reader = PatchReader(source_of(image), policy_of(image), model)
    x = reader.read(Window.whole(image.shape[:2]))[0]
    return model(torch.from_numpy(x).permute(2, 0, 1)[None]).logits


def assert_is_the_forward(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Logits to 1e-3 of their deviation, and every class that they leave no doubt about."""
    scale = expected.std()
    assert (got - expected).abs().max() < 1e-3 * scale
    best = expected.topk(2, dim=1).values
    sure = (best[:, 0] - best[:, 1]) > 2e-3 * scale
    assert (got.argmax(1) == expected.argmax(1))[sure].all()


ODD, EVEN = ((543, 690), 384), ((320, 800), 256)
"""Image and core: odd ones whose nearest pixels float64 would miss, and multiples of 32 wider than a patch."""
USUAL = {("reference", ODD), ("lite", ODD)} | {(name, EVEN) for name in ("paper", "pspnet", "cheap", "single")}
"""Every network but one at one of them; the other pairs are long."""


@pytest.mark.parametrize(
    ("shape", "core", "name"),
    [
        pytest.param(*sizes, name, marks=[] if (name, sizes) in USUAL else [pytest.mark.long])
        for name in NETWORKS
        for sizes in (ODD, EVEN)
    ],
)
def test_equals_one_forward(name: str, shape: tuple[int, int], core: int) -> None:
    model, image = lively(NETWORKS[name]), picture(shape)
    expected = one_shot(model, image)
    got = all_logits(streamed(model, image, core=core, exact=True))
    assert_is_the_forward(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("core", [512, 1024, 2048])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_one_forward_at_the_cores_that_are_used(name: str, core: int, tmp_path: Path) -> None:
    """In RAM and spilled, which must give the same bits; the image is larger than a core in both directions."""
    model, image = lively(NETWORKS[name]), picture((2113, 2331))
    expected = one_shot(model, image)
    in_ram = all_logits(streamed(model, image, core=core, exact=True), 700)
    spilled = all_logits(streamed(model, image, core=core, exact=True, folder=tmp_path / "maps"), 700)
    assert (tmp_path / "maps" / "fused.map").is_file()
    assert torch.equal(in_ram, spilled)
    assert_is_the_forward(in_ram, expected)


@pytest.mark.slow
@pytest.mark.parametrize("core", [512, 1024])
def test_half_precision_maps_of_the_shipped_model_change_two_pixels_in_ten_thousand_at_most(core: int) -> None:
    from napari_isdnet.io.world import ProceduralWorld
    from napari_isdnet.model.checkpoint import load_model

    model = load_model("landcover-lite")
    image = ProceduralWorld((2113, 2331), seed=3).read(Window.whole((2113, 2331)))
    expected = one_shot(model, image).argmax(1)
    assert len(expected.unique()) == 5  # all classes, with borders between them
    got = all_logits(streamed(model, image, core=core), 700).argmax(1)
    assert (got != expected).float().mean() <= 2e-4


@pytest.mark.parametrize("name", ["cheap", "lite"])
def test_last_cores_without_a_pixel_of_the_deep_input(name: str) -> None:
    # 2 and 3 pixels beyond whole cores: a quarter of them, rounded down, is none.
    model, image = lively(NETWORKS[name]), picture((258, 387))
    expected = one_shot(model, image)
    got = all_logits(streamed(model, image, core=128, exact=True))
    assert (got - expected).abs().max() < 1e-3 * expected.std()


def test_half_precision_maps_change_hardly_a_pixel() -> None:
    model, image = lively(NETWORKS["reference"]), picture((481, 643))
    expected = one_shot(model, image).argmax(1)
    got = all_logits(streamed(model, image, core=256)).argmax(1)
    assert (got != expected).float().mean() < 2e-3  # random weights: margins are far smaller than after training


def test_forced_streaming_never_forwards_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (96, 640)  # just wider than what may be forwarded at once
    model, image = lively(NETWORKS["reference"]), picture(shape)
    seen: list[tuple[int, int]] = []
    for part in (ISDNet.shallow_input, ISDNet.coarse_logits, ISDNet.forward):

        def spy(self: ISDNet, x: torch.Tensor, *rest: object, part=part, **named: object) -> object:  # type: ignore[no-untyped-def]
            seen.append((x.shape[2], x.shape[3]))
            return part(self, x, *rest, **named)

        monkeypatch.setattr(ISDNet, part.__name__, spy)
    whole = streamed(model, image, core=128, exact=True)
    limit = 128 + 2 * whole.local.shallow_halo + 64
    seen = [size for size in seen if size != (96, 128)]  # the self check of prepare()
    assert len(seen) == len(Grid(shape, (128, 128)))
    assert max(max(size) for size in seen) <= limit < 640
    monkeypatch.undo()

    # A change in one far corner reaches the other, as much as in one forward of the whole image.
    changed = image.copy()
    changed[:64, :64] = 255 - changed[:64, :64]
    corner = Window(36, 580, 60, 60)
    before, after = (one_shot(model, i)[(..., *corner.slices)] for i in (image, changed))
    streamed_after = streamed(model, changed, core=128, exact=True).logits(corner)
    effect = (after - before).abs().max()
    assert effect > 0
    difference = (streamed_after - whole.logits(corner)) - (after - before)
    assert difference.abs().max() < max(0.2 * effect, 1e-4 * before.std())


def test_spilled_maps_give_the_same_bytes(tmp_path: Path) -> None:
    model, image = lively(NETWORKS["reference"]), picture((300, 420))
    in_ram = streamed(model, image, core=256)
    spilled = streamed(model, image, core=256, folder=tmp_path / "maps")
    window = Window.whole((300, 420))
    np.testing.assert_array_equal(in_ram.labels(window), spilled.labels(window))
    assert {p.name for p in (tmp_path / "maps").iterdir()} >= {"shallow8.map", "quarter.map", "fused.map"}


@pytest.mark.long
def test_region_under_known_means_is_the_crop_and_reads_little() -> None:
    model, image = lively(NETWORKS["cheap"]), picture((1500, 1500))
    whole = streamed(model, image, core=256)
    region = Window(1100, 1200, 256, 256)
    reader = PatchReader(source_of(image), policy_of(image), model)
    options = StreamOptions(core=256, means=whole.means)
    alone = WholeImage(prepare(model, CPU), reader, CPU, options)
    assert alone.prepared
    assert list(alone.prepare()) == []
    np.testing.assert_array_equal(alone.labels(region), whole.labels(region))
    assert len(alone.shallow8.missing()) > len(alone.shallow8.grid) // 2
