"""Pictures, OME-Zarr, slides and arrays, each compared with an independent decode."""

from __future__ import annotations

import json
import struct
import sys

import imagecodecs
import numpy as np
import pytest
import rasterio
import tifffile
import zarr
from napari.layers import Image

from napari_isdnet.cli_segment import _segment_one
from napari_isdnet.engine.segment import segment
from napari_isdnet.exceptions import InputError, MissingExtra
from napari_isdnet.io.array import ArraySource, find_axes
from napari_isdnet.io.describe import describe
from napari_isdnet.io.open import open_source, stem_of
from napari_isdnet.io.scaled import resampled
from napari_isdnet.io.source import ImageSource, resident_bytes
from napari_isdnet.io.wsi import open_slide
from napari_isdnet.window import Window

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
RNG = np.random.default_rng(11)


def noise(*shape, dtype=np.uint8):
    if np.dtype(dtype).kind == "f":
        return RNG.random(shape).astype(dtype)
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def check(source, truth):
    assert isinstance(source, ImageSource)
    assert [tuple(level) for level in source.levels] == [t.shape[:2] for t in truth]
    for level, full in enumerate(truth):
        rows, columns = full.shape[:2]
        for _ in range(12):
            top, left = int(RNG.integers(0, rows)), int(RNG.integers(0, columns))
            window = Window(top, left, int(RNG.integers(0, rows - top + 1)), int(RNG.integers(0, columns - left + 1)))
            crop = source.read(window, level)
            assert crop.dtype == source.dtype
            np.testing.assert_array_equal(crop, full[window.slices])
            crop[:] = 0  # what was read is the caller's: nothing below may see this
        np.testing.assert_array_equal(source.read(Window(0, 0, rows, columns), level), full)


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 2), (40, 50, 3), (40, 50, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png(tmp_path, shape, dtype):
    image = noise(*shape, dtype=dtype)
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(image))
    with rasterio.open(path) as dataset:
        truth = np.moveaxis(dataset.read(), 0, 2)
    np.testing.assert_array_equal(truth, image.reshape(40, 50, -1))
    source = open_source(path)
    check(source, [truth])
    assert source.alpha == (truth.shape[2] - 1 if truth.shape[2] in (2, 4) else None)


def test_jpeg_and_jpeg2000(tmp_path, monkeypatch):
    image = noise(48, 64, 3)
    path = tmp_path / "a.jpg"
    path.write_bytes(imagecodecs.jpeg_encode(image, level=95))
    check(open_source(path), [imagecodecs.jpeg_decode(path.read_bytes())])
    wide = noise(48, 64, 3, dtype=np.uint16)
    path = tmp_path / "a.jp2"
    path.write_bytes(imagecodecs.jpeg2k_encode(wide, level=0, codecformat="jp2"))
    assert open_source(path).format == "GDAL JP2OpenJPEG"
    check(open_source(path), [wide])
    monkeypatch.setattr("napari_isdnet.io.open._has", lambda module: False)
    assert open_source(path).format == "JPEG 2000"
    check(open_source(path), [wide])


def test_pictures_that_do_not_fit_are_refused_before_decoding(tmp_path):
    image = noise(200, 300, 3)
    for name, data in (
        ("a.png", imagecodecs.png_encode(image)),
        ("a.jpg", imagecodecs.jpeg_encode(image)),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match="tiled TIFF"):
            open_source(tmp_path / name, memory=100_000 if name == "a.jpg" else 179_999)
    assert open_source(tmp_path / "a.jpg", memory=180_000).shape == (200, 300)


def test_a_picture_takes_no_more_than_the_budget_of_a_command(tmp_path):
    path = tmp_path / "a.png"
    data = bytearray(imagecodecs.png_encode(noise(8, 8, 3)))
    data[16:24] = struct.pack(">II", 20_000, 20_000)  # said to be 1.1 GiB; what it holds is never looked at
    path.write_bytes(data)
    output = tmp_path / "out"
    for command in (
        lambda: next(segment(path, tmp_path / "no.safetensors", output=output, memory=1)),
        lambda: _segment_one(path, output, None, {"memory": 1}),
    ):
        with pytest.raises(InputError, match=r"would take 1.1 GiB where 0.1 are allowed; allow more memory, or save"):
            command()
    with pytest.raises(InputError, match="damaged PNG"):
        _segment_one(path, output, None, {"memory": 4})


def test_what_a_picture_takes_is_known(tmp_path):
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(noise(20, 30, 3)))
    source = open_source(tmp_path / "a.png")
    assert resident_bytes(source) == resident_bytes(resampled(source, 0.5)) == 1800
    assert resident_bytes(open_source(noise(20, 30, 3))) == 0  # which is the caller's


def write_ome_zarr(path, levels, axes, version, scale=(0.5, 0.25)):
    group = zarr.open_group(str(path), mode="w", zarr_format=2 if version == "0.4" else 3)
    for i, level in enumerate(levels):
        chunks = tuple(32 if a in "yx" else 1 for a in axes)
        array = group.create_array(str(i), shape=level.shape, chunks=chunks, dtype=level.dtype)
        array[...] = level
    full = [1.0] * (len(axes) - 2) + list(scale) if axes[-1] == "x" else [*scale, 1.0]
    kinds = {"y": "space", "x": "space", "z": "space", "c": "channel", "t": "time"}
    described = [{"name": a, "type": kinds[a], **({"unit": "micrometer"} if a in "yx" else {})} for a in axes]
    datasets = [
        {
            "path": str(i),
            "coordinateTransformations": [
                {"type": "scale", "scale": [s * 2**i if a in "yx" else s for a, s in zip(axes, full)]}
            ],
        }
        for i in range(len(levels))
    ]
    multiscales = [{"version": version, "name": "x", "axes": described, "datasets": datasets}]
    if version == "0.4":
        group.attrs["multiscales"] = multiscales
    else:
        group.attrs["ome"] = {"version": version, "multiscales": multiscales}


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["cyx", "yxc", "tczyx", "yx"])
def test_ome_zarr(tmp_path, version, axes):
    image = noise(90, 110, 3, dtype=np.uint16)
    image = image if "c" in axes else image[..., :1]
    levels = [image, image[::2, ::2]]
    stored = {
        "cyx": [np.moveaxis(v, 2, 0) for v in levels],
        "yxc": levels,
        "tczyx": [np.stack([np.moveaxis(v, 2, 0)[:, None]] * 2) for v in levels],
        "yx": [v[..., 0] for v in levels],
    }[axes]
    path = tmp_path / "scene.ome.zarr"
    write_ome_zarr(path, stored, axes, version)
    source = open_source(path)
    check(source, levels)
    assert (source.name, source.format) == ("scene", f"OME-Zarr {version}")
    assert (source.pixel_size.row, source.pixel_size.column, source.pixel_size.unit) == (0.5, 0.25, "µm")
    assert source.notes == (("axis t has 2 planes, the first is used",) if axes == "tczyx" else ())
    assert json.loads(json.dumps(source.identity())) == dict(source.identity())


def test_plain_zarr_and_a_nested_series(tmp_path):
    image = noise(70, 80, 4)
    zarr.save_array(str(tmp_path / "plain.zarr"), image)
    check(open_source(tmp_path / "plain.zarr"), [image])
    zarr.open_group(str(tmp_path / "converted.zarr"), mode="w", zarr_format=2)
    write_ome_zarr(tmp_path / "converted.zarr" / "0", [np.moveaxis(image, 2, 0)], "cyx", "0.4")
    check(open_source(tmp_path / "converted.zarr"), [image])


def test_zarr_that_points_outside_is_refused(tmp_path):
    zarr.save_array(str(tmp_path / "secret.zarr"), noise(8, 8))
    path = tmp_path / "a.zarr"
    write_ome_zarr(path, [noise(8, 8)], "yx", "0.5")
    text = (path / "zarr.json").read_text().replace('"path": "0"', '"path": "../secret.zarr"')
    (path / "zarr.json").write_text(text)
    with pytest.raises(InputError, match="outside"):
        open_source(path)


def test_openslide_reads_a_generic_tiled_tiff(tmp_path):
    image = noise(700, 600, 3)
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(256, 256), photometric="rgb", compression="jpeg", metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        truth = tif.pages[0].asarray()
    source = open_slide(tmp_path / "a.tif", "a")
    assert source.alpha == 3
    whole = source.read(Window(0, 0, 700, 600))
    # Two JPEG decoders may differ by a few grey values.
    assert np.abs(whole[..., :3].astype(int) - truth).max() <= 4
    assert (whole[..., 3] == 255).all()
    np.testing.assert_array_equal(source.read(Window(500, 490, 40, 90)), whole[500:540, 490:580])


@pytest.mark.parametrize(("module", "name", "extra"), [("rasterio", "a.vrt", "geo"), ("openslide", "a.mrxs", "wsi")])
def test_a_missing_library_names_its_extra(tmp_path, monkeypatch, module, name, extra):
    (tmp_path / name).write_bytes(b"something that is no image at all")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"napari-isdnet\[{extra}\]") as caught:
        open_source(tmp_path / name)
    assert caught.value.extra == extra


def test_what_cannot_be_read_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.mrxs").write_bytes(b"nothing")
    (tmp_path / "a.vrt").write_text("<nothing/>")
    for item in (
        tmp_path / "notes.txt", tmp_path / "folder", tmp_path / "absent.tif", tmp_path / "a.mrxs", tmp_path / "a.vrt",
        17, [], np.zeros(5), np.zeros((0, 4)), np.zeros((4, 4), complex), [np.zeros((4, 4)), np.zeros((8, 8))],
    ):  # fmt: skip
        with pytest.raises(InputError) as caught:
            open_source(item)
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith(".")


def test_arrays_levels_and_layers():
    da = pytest.importorskip("dask.array")
    image = noise(80, 90, 3)
    check(open_source(image), [image])
    check(open_source(image[..., 0]), [image[..., :1]])
    check(open_source(np.moveaxis(image, 2, 0)), [image])
    check(open_source(da.from_array(image, chunks=(32, 32, 3))), [image])
    check(open_source(zarr.array(image)), [image])
    levels = [image, image[::2, ::2], image[::4, ::4]]
    check(open_source(levels), levels)
    layer = Image(levels, multiscale=True, rgb=True, name="field", scale=(0.5, 0.5), units=("um", "um"))
    source = open_source(layer)
    check(source, levels)
    assert source.name == "field"
    assert source.pixel_size.metres == pytest.approx(5e-7)
    assert open_source(source) is source
    stack = open_source(np.stack([image[..., 0]] * 2)[:, None], axes="tzyx")
    assert stack.notes == ("axis t has 2 planes, the first is used",)


def test_array_identity_follows_content():
    image = noise(300, 310, 3)
    same, other = open_source(image.copy()).identity(), image.copy()
    other[100:200, 100:200] = 0
    assert open_source(image).identity() == same
    assert open_source(other).identity() != same
    json.dumps(same)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((5, 6), (0, 1, None)), ((5, 6, 3), (0, 1, 2)), ((3, 60, 70), (1, 2, 0)), ((12, 60, 70), (1, 2, 0)),
     ((60, 70, 12), (0, 1, 2)), ((1, 1, 2, 60, 70), (3, 4, 2))],
)  # fmt: skip
def test_axes_by_shape(shape, expected):
    axes = find_axes(shape)
    assert (axes.row, axes.column, axes.channel) == expected


def test_npy_never_unpickles(tmp_path):
    image = noise(20, 30, 3)
    np.save(tmp_path / "a.npy", image)
    check(open_source(tmp_path / "a.npy"), [image])
    np.save(tmp_path / "b.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(InputError):
        open_source(tmp_path / "b.npy")


def test_stems():
    from pathlib import Path

    names = {"a.ome.zarr": "a", "a.ome.tif": "a", "b.c.tif": "b.c", "slide.svs": "slide", "x": "x"}
    assert {n: stem_of(Path(n)) for n in names} == names


@pytest.mark.parametrize("factor", [0.5, 0.37, 0.25, 1.5, 2.0])
def test_resampling_is_independent_of_the_window(factor):
    source = resampled(open_source(noise(130, 97, 3)), factor)
    assert source.shape == (round(130 * factor), round(97 * factor))
    whole = source.read(Window(0, 0, *source.shape))
    for _ in range(20):
        top, left = int(RNG.integers(0, source.shape[0])), int(RNG.integers(0, source.shape[1]))
        window = Window(
            top, left, int(RNG.integers(0, source.shape[0] - top + 1)), 1 + (source.shape[1] - left - 1) // 2
        )
        np.testing.assert_array_equal(source.read(window), whole[window.slices])


def test_resampling_by_half_is_the_block_mean_and_keeps_the_place(tmp_path):
    image = noise(64, 80, 2, dtype=np.uint16)
    half = resampled(open_source(image), 0.5)
    mean = np.rint(image.reshape(32, 2, 40, 2, 2).mean(axis=(1, 3))).astype(np.uint16)
    np.testing.assert_array_equal(half.read(Window(0, 0, 32, 40)), mean)
    flat = resampled(open_source(np.full((50, 60, 3), 93, np.uint8)), 1.7)
    assert (flat.read(Window(0, 0, *flat.shape)) == 93).all()
    ramp = resampled(open_source(np.arange(100, dtype=np.float64)[None].repeat(4, 0)), 2.0)
    np.testing.assert_allclose(ramp.read(Window(0, 0, 8, 200))[3, 1:-1, 0], (np.arange(1, 199) + 0.5) / 2 - 0.5)
    with rasterio.open(
        tmp_path / "g.tif", "w", driver="GTiff", height=64, width=80, count=1, dtype="uint8", crs="EPSG:3857", nodata=9,
        transform=rasterio.Affine(2, 0, 100, 0, -2, 50),
    ) as dataset:  # fmt: skip
        data = np.full((64, 80), 9, np.uint8)
        data[:, 40:] = 200
        dataset.write(data, 1)
    source = resampled(open_source(tmp_path / "g.tif"), 0.4)
    assert source.pixel_size.row == pytest.approx(64 / 26 * 2)
    assert set(np.unique(source.read(Window(0, 0, *source.shape)))) == {9, 200}, "nodata must not leak into means"
    assert source.identity()["scale"] == 0.4
    for bad in (0, -1, float("nan"), 1e9):
        with pytest.raises(InputError):
            resampled(open_source(image), bad)


@pytest.mark.parametrize("factor", [0.5, 0.37, 1.7])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_resampling_leaves_out_the_colours_of_what_is_hidden(factor, dtype):
    image = noise(120, 90, 4).astype(dtype)
    image[..., 3] = 255
    plain = resampled(open_source(image[..., :3].copy()), factor)
    whole = Window.whole(plain.shape)
    seen = resampled(ArraySource([image.copy()], "a", rgb=True), factor).read(whole)
    np.testing.assert_array_equal(seen[..., :3], plain.read(whole))
    image[:, 45:] = 0
    image[:60, :45] = (200, 100, 50, 255)
    source = resampled(ArraySource([image], "a", rgb=True), factor)
    result = source.read(whole)
    upper = result[: int(58 * factor)]
    np.testing.assert_allclose(upper[upper[..., 3] > 0][:, :3], [(200, 100, 50)] * (upper[..., 3] > 0).sum(), rtol=1e-6)
    assert ((upper[..., 3] > 0) & (upper[..., 3] < 255)).any()
    assert not result[..., 3].all()
    far = int(40 * factor)  # pixels that touch nothing hidden are what they are without any
    np.testing.assert_array_equal(result[-far:, :far], seen[-far:, :far])
    for window in (Window(3, 5, 20, 16), Window(0, 0, 7, whole.width), Window(9, 0, 20, far)):
        np.testing.assert_array_equal(source.read(window), result[window.slices])


def test_description_is_json(tmp_path):
    image = noise(64, 64, 1, dtype=np.float32)
    image[:5] = np.nan
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=64, width=64, count=1, dtype="float32", nodata=float("nan"), crs="EPSG:3857",
        transform=rasterio.Affine(2, 0, 0, 0, -2, 0),
    ) as dataset:  # fmt: skip
        dataset.write(image[..., 0], 1)
    facts = json.loads(json.dumps(describe(open_source(path)), allow_nan=False))
    assert (facts["rows"], facts["columns"], facts["dtype"], facts["crs"]) == (64, 64, "float32", "EPSG:3857")
    assert facts["nodata"] == "nan"
    assert facts["decoded_bytes"] == 64 * 64 * 4
    low, high = np.percentile(image[5:].astype(float), (0.5, 99.5))
    assert facts["intensity"]["low"] == pytest.approx([low])
    assert facts["intensity"]["high"] == pytest.approx([high])
