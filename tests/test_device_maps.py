"""Maps that stay on the device and windows that are sent as bytes: the same answers, without the ways there and back.

A processor plays the card: what differs between them is where tensors lie, and that nothing is waited for.
"""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_isdnet.engine import job
from napari_isdnet.engine.device import Placement, prepare
from napari_isdnet.engine.local import LocalNetwork
from napari_isdnet.engine.maps import DeviceMap
from napari_isdnet.engine.means import MeanSums
from napari_isdnet.engine.orientations import orientations, turned
from napari_isdnet.engine.patches import PatchReader
from napari_isdnet.engine.streaming import StreamOptions, WholeImage
from napari_isdnet.engine.upload import Upload
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.window import Grid, Window
from tests.network_tools import lively, picture, policy_of, small, source_of

CPU = Placement(torch.device("cpu"), torch.float32)
SHAPE = (487, 562)
"""Cores of 256 and what they reach are less than all of it, in both directions."""
NETWORKS = {
    "reference": small(channels=16),
    "pspnet": small(deep_head="pspnet", fusion="cat_ca", classes=3, channels=16),  # several pools over the whole image
    "lite": small(deep="tf_efficientnet_lite0", deep_filter="lowpass", channels=16),
}


def streamed(model: ISDNet, image: np.ndarray, **options: Any) -> WholeImage:
    reader = PatchReader(source_of(image), policy_of(image), model)
    whole = WholeImage(prepare(model, CPU), reader, CPU, StreamOptions(**{"core": 256, **options}))
    for _ in whole.prepare():
        pass
    return whole


def assert_same(got: WholeImage, expected: WholeImage) -> None:
    """Means to the rounding of a sum's order, logits to that of what follows from them."""
    assert got.means is not None
    assert expected.means is not None
    for name, vector in expected.means.vectors.items():
        np.testing.assert_allclose(got.means.vector(name), vector, rtol=1e-6, atol=1e-7)
    for a, b in zip(got.means.pools or [], expected.means.pools or [], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    rows, columns = expected.sizes.image
    window = Window(3, 5, rows - 13, columns - 10)
    wanted = expected.logits(window)
    assert (got.logits(window) - wanted).abs().max() < 1e-4 * wanted.std()


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("reference", True),
        ("pspnet", False),
        *(
            pytest.param(name, exact, marks=pytest.mark.long)
            for name, exact in (("reference", False), ("pspnet", True), ("lite", True), ("lite", False))
        ),
    ],
)
def test_maps_on_the_device_give_the_answer_of_maps_in_ram(name: str, exact: bool) -> None:
    model, image = lively(NETWORKS[name]), picture(SHAPE)
    there = streamed(model, image, exact=exact, on_device=True)
    assert all(isinstance(item.storage, DeviceMap) for item in there.maps)
    kept = there.shallow8.read(Window(0, 0, 2, 3))
    assert kept.dtype == (torch.float32 if exact else torch.float16)
    assert_same(there, streamed(model, image, exact=exact))
    there.close()
    with pytest.raises(AssertionError, match="closed"):
        there.shallow8.read(Window(0, 0, 2, 3))


def test_cores_that_a_device_refuses_are_joined_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = lively(NETWORKS["reference"]), picture((300, 1060))
    expected = streamed(model, image, core=1024, exact=True)
    original, refused = LocalNetwork.shallow, []

    def refusing(self: LocalNetwork, x: torch.Tensor, place: Any) -> Any:
        if max(x.shape[2:]) > 256 + 2 * self.shallow_halo + 64:
            refused.append(x.shape)
            raise torch.OutOfMemoryError("out of memory")
        return original(self, x, place)

    monkeypatch.setattr(LocalNetwork, "shallow", refusing)
    assert_same(streamed(model, image, core=1024, exact=True, on_device=True), expected)
    assert refused


def test_sums_of_many_units_are_added_up_without_a_copy_of_all() -> None:
    sums, units = MeanSums((1, 2, 3, 6), (100, 100)), 200
    for unit in range(units):
        sums.add("backbone", unit, np.full(50 * 64, float(unit)))
    tracemalloc.start()
    try:
        pools = sums.pools("backbone", units)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < units * 50 * 64 * 8 / 10
    assert pools[0][0, 0, 0] == pytest.approx(units * (units - 1) / 2 / 100**2)


@pytest.mark.parametrize("limit", [1, 100, 2**26])
def test_sums_that_stay_on_the_device_are_those_of_numpy(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_isdnet.engine.means.WIDENED_BYTES", limit)
    rng, deep = np.random.default_rng(0), (11, 13)
    here, there = MeanSums((1, 2, 3, 6), deep), MeanSums((1, 2, 3, 6), deep)
    values = rng.normal(size=(*deep, 4)).astype(np.float16)
    for name in ("backbone", "fused", "quarter"):
        for unit, window in enumerate(Grid(deep, (4, 4))):
            here.measure(name, unit, values[window.slices], window)
            there.measure(name, unit, torch.from_numpy(values[window.slices]), window)
            np.testing.assert_allclose(there.of(name, unit), here.of(name, unit), rtol=1e-12)
    units = len(Grid(deep, (4, 4)))
    np.testing.assert_allclose(there.mean("fused", units), values.astype(np.float64).mean((0, 1)), rtol=1e-12)
    for ours, bins in zip(there.pools("backbone", units), (1, 2, 3, 6), strict=True):
        pooled = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(values).double().permute(2, 0, 1), bins)
        np.testing.assert_allclose(ours, pooled.numpy(), rtol=1e-9)


def test_a_mean_over_some_units_is_none_over_all() -> None:
    sums, grid = MeanSums((1,), (8, 8)), Grid((8, 8), (4, 4))
    for unit in range(3):
        sums.measure("fused", unit, np.ones((4, 4, 2), np.float16), grid[unit])
    with pytest.raises(RuntimeError, match="3 of 4 units of 'fused'"):
        sums.mean("fused", len(grid))
    with pytest.raises(RuntimeError, match="0 of 4"):
        sums.pools("backbone", len(grid))


def test_bytes_are_normalised_to_the_very_values_of_the_reader() -> None:
    model, image = lively(NETWORKS["lite"]), picture((40, 50))
    reader = PatchReader(source_of(image), policy_of(image), model)
    window = Window(4, 6, 30, 41)
    stored = reader.stored(window)
    assert stored.dtype == np.uint8
    sent = Upload(CPU.device, reader.normal).send(stored).arrived()
    np.testing.assert_array_equal(sent[0].permute(1, 2, 0).numpy(), reader.read(window)[0])
    for orientation in orientations(8)[1:]:
        other = turned(reader, orientation)
        part = orientation.window(window, reader.shape)
        sent = Upload(CPU.device, other.normal).send(other.stored(part)).arrived()
        np.testing.assert_array_equal(sent[0].permute(1, 2, 0).numpy(), other.read(part)[0])


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (picture((40, 50)).astype(np.uint16) * 200, "stretched"),
        (np.dstack([picture((40, 50)), np.full((40, 50), 255, np.uint8)]), "alpha"),
        (picture((40, 50))[..., :1], "grey"),
    ],
    ids=["16 bit", "alpha", "grey"],
)
def test_what_is_not_plain_colours_is_normalised_by_the_reader(image: np.ndarray, why: str) -> None:
    source = ArraySource([image], why, "yxc", rgb=why == "alpha" or None)
    assert (source.alpha is not None) == (why == "alpha")
    reader = PatchReader(source, IntensityPolicy.from_source(source), lively(NETWORKS["lite"]))
    window = Window(0, 0, 40, 50)
    np.testing.assert_array_equal(reader.stored(window), reader.read(window)[0])
    assert reader.stored(window).dtype == np.float32


def test_a_whole_image_sent_as_bytes_is_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = lively(NETWORKS["lite"]), picture(SHAPE)
    expected = streamed(model, image).logits(Window.whole(SHAPE))
    monkeypatch.setattr(Upload, "takes_bytes", True)
    monkeypatch.setattr(PatchReader, "read", None)  # nobody asks for normalised pixels
    assert torch.equal(streamed(model, image).logits(Window.whole(SHAPE)), expected)


def test_a_job_keeps_its_maps_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = lively(NETWORKS["lite"]), picture(SHAPE)
    assert job.room_on_device(CPU.device) == 0
    size = job.map_bytes_per_pixel(prepare(model, CPU)) * SHAPE[0] * SHAPE[1]
    for room, kind in ((size * 1.01, DeviceMap), (size * 0.99, job.RAM_MAPS)):
        monkeypatch.setattr(job, "room_on_device", lambda device, room=room: room)
        monkeypatch.setattr(job, "RAM_MAPS", 0)  # beyond the device it is the disk
        predictor = job.make_predictor(model, source_of(image), policy_of(image), CPU, folder=tmp_path / "maps")
        assert isinstance(predictor, WholeImage)
        assert isinstance(predictor.shallow8.storage, DeviceMap) == (kind is DeviceMap)
        assert (tmp_path / "maps").exists() == (kind is not DeviceMap)
        predictor.close()


def test_known_means_ask_for_no_whole_maps_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = lively(NETWORKS["lite"]), picture(SHAPE)
    monkeypatch.setattr(job, "room_on_device", lambda device: 1e12)
    known = streamed(model, image).means
    for means, there in (((), True), ((None,), True), ((known,), False)):
        predictor = job.make_predictor(model, source_of(image), policy_of(image), CPU, means=means)
        assert isinstance(predictor, WholeImage)
        assert isinstance(predictor.shallow8.storage, DeviceMap) == there
        predictor.close()


def test_a_device_that_has_been_filled_meanwhile_leaves_the_maps_to_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = lively(NETWORKS["lite"]), picture(SHAPE)
    monkeypatch.setattr(job, "room_on_device", lambda device: 1e12)

    def full(*_: object) -> DeviceMap:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("napari_isdnet.engine.streaming.DeviceMap", full)
    predictor = job.make_predictor(model, source_of(image), policy_of(image), CPU)
    assert isinstance(predictor, WholeImage)
    for _ in predictor.prepare():
        pass
    assert predictor.labels(Window(0, 0, 40, 50)).shape == (40, 50)
    predictor.close()


@pytest.mark.parametrize("piece", ["backbone", "project_deep", "fuse16", "classify"])
def test_too_little_memory_in_any_pass_is_a_sentence(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(LocalNetwork, piece, full)

    def run() -> None:
        streamed(lively(NETWORKS["lite"]), picture((300, 300)), on_device=True).labels(Window(0, 0, 9, 9))

    with pytest.raises(InputError, match="too little memory"):
        run()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_card_maps_stay_and_the_answer_is_that_of_ram() -> None:
    model, image, card = lively(NETWORKS["reference"]), picture(SHAPE), Placement(torch.device("cuda"), torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    found = []
    for on_device in (True, False):
        reader = PatchReader(source_of(image), policy_of(image), model)
        options = StreamOptions(core=256, exact=True, on_device=on_device)
        whole = WholeImage(prepare(model, card), reader, card, options)
        for _ in whole.prepare():
            pass
        found.append(whole)
    assert found[0].shallow8.read(Window(0, 0, 2, 3)).is_cuda
    assert_same(*found)
