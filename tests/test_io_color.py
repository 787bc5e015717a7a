"""What samples mean: white that is 0, CMYK, YCbCr, Lab, turned photographs and channels that are left out."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image, ImageOps

from napari_isdnet.classes import ClassInfo
from napari_isdnet.engine.labels import open_labels
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.describe import describe
from napari_isdnet.io.ome_zarr import own_facts, usable_place
from napari_isdnet.io.open import open_source
from napari_isdnet.io.source import GeoReference, PixelSize
from napari_isdnet.io.store import LabelStore
from napari_isdnet.window import Window

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def photo(rows=90, columns=131):
    """Smooth colours, so that lossy codecs stay near them."""
    y, x = np.mgrid[0:rows, 0:columns]
    return np.stack([x * 255 // columns, y * 255 // rows, (x + y) * 255 // (rows + columns)], -1).astype(np.uint8)


def inks(rows=90, columns=131):
    """CMYK in which black is used as well."""
    return np.dstack([photo(rows, columns), photo(rows, columns)[::-1, :, 0] // 2])


def whole(source):
    """All pixels, and a window inside that must be their crop."""
    pixels = source.read(Window.whole(source.shape))
    part = Window(11, 23, 40, 60)
    np.testing.assert_array_equal(source.read(part), pixels[part.slices])
    return pixels


def pillow(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("layout", [{}, {"tile": (32, 48), "compression": "zlib", "predictor": 2}])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_that_is_zero_is_inverted(tmp_path, layout, dtype):
    grey = photo()[..., 0].astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", grey, photometric="miniswhite", **layout)
    source = open_source(tmp_path / "a.tif")
    np.testing.assert_array_equal(whole(source)[..., 0], np.iinfo(dtype).max - grey)
    assert source.notes == ("0 is white in this file: its values were inverted",)
    if dtype == np.uint8:
        np.testing.assert_array_equal(whole(source)[..., 0], pillow(tmp_path / "a.tif")[..., 0])


def test_inverted_bits_and_levels_and_what_cannot_be_inverted(tmp_path):
    grey = photo()[..., 0]
    tifffile.imwrite(tmp_path / "bits.tif", grey > 99, photometric="miniswhite")
    np.testing.assert_array_equal(whole(open_source(tmp_path / "bits.tif"))[..., 0], (grey <= 99) * np.uint8(255))
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as writer:
        writer.write(grey, subifds=1, photometric="miniswhite", tile=(32, 32))
        writer.write(grey[::2, ::2], subfiletype=1, photometric="miniswhite", tile=(32, 32))
    source = open_source(tmp_path / "pyramid.tif")
    np.testing.assert_array_equal(source.read(Window(0, 0, 45, 66), 1)[..., 0], 255 - grey[::2, ::2])
    tifffile.imwrite(tmp_path / "real.tif", grey.astype(np.float32), photometric="miniswhite")
    source = open_source(tmp_path / "real.tif")
    np.testing.assert_array_equal(whole(source)[..., 0], grey)
    assert "no meaning for float32" in source.notes[0]


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_alpha_and_nodata_beside_inverted_grey(tmp_path, planar):
    image = photo()[..., :2]
    data = image if planar == "contig" else np.moveaxis(image, 2, 0)
    tifffile.imwrite(
        tmp_path / "a.tif", data, photometric="miniswhite", planarconfig=planar, extrasamples=["unassalpha"],
        extratags=[(42113, 2, 0, "200", True)],
    )  # fmt: skip
    source = open_source(tmp_path / "a.tif")
    assert (source.alpha, source.nodata) == (1, 55)
    np.testing.assert_array_equal(whole(source), np.dstack([255 - image[..., 0], image[..., 1]]))


def test_label_maps_keep_the_values_that_are_stored(tmp_path):
    indices = photo()[..., 0] // 64
    tags = [(42113, 2, 0, "3", True)]
    tifffile.imwrite(tmp_path / "a.tif", indices, photometric="miniswhite", extratags=tags)
    source, _ = open_labels(tmp_path / "a.tif")
    np.testing.assert_array_equal(whole(source)[..., 0], indices)
    assert source.nodata == 3
    assert open_source(tmp_path / "a.tif").nodata == 252


def test_tiles_that_a_sparse_file_lacks_are_converted_too(tmp_path):
    options = {"tiled": True, "blockxsize": 64, "blockysize": 64, "sparse_ok": True, "photometric": "MINISWHITE"}
    with rasterio.open(tmp_path / "a.tif", "w", "GTiff", 128, 128, 1, dtype="uint8", **options) as dataset:
        dataset.write(np.full((1, 64, 64), 5, np.uint8), window=rasterio.windows.Window(64, 64, 64, 64))
    assert set(np.unique(whole(open_source(tmp_path / "a.tif")))) == {250, 255}


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "jpeg"])
def test_cmyk_becomes_rgb_as_pillow_has_it(tmp_path, compression):
    path = tmp_path / "a.tif"
    Image.fromarray(inks(), "CMYK").save(path, compression=compression)
    source = open_source(path)
    assert (source.channels, source.alpha) == (3, None)
    np.testing.assert_array_equal(whole(source), pillow(path))
    assert source.notes == ("CMYK was converted to RGB without its colour profile",)


def test_cmyk_of_16_bits_with_alpha_in_tiles(tmp_path):
    image = np.dstack([inks(), photo()[..., 1]]).astype(np.uint16) * 257
    tifffile.imwrite(
        tmp_path / "a.tif", image, photometric="separated", extrasamples=["unassalpha"], tile=(32, 32),
        planarconfig="contig", extratags=[(42113, 2, 0, "0", True)],
    )  # fmt: skip
    source = open_source(tmp_path / "a.tif")
    assert (source.channels, source.alpha, source.nodata) == (4, 3, None)
    assert any("nodata value 0 is ignored" in note for note in source.notes)
    light = 1 - image / 65535
    expected = np.dstack([light[..., :3] * light[..., 3:4] * 65535, image[..., 4]])
    assert np.abs(whole(source) - expected).max() <= 0.5 + 1e-6


def test_cmyk_jpeg_with_black_becomes_rgb(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(inks(300), "CMYK").save(path, quality=95)
    source = open_source(path)
    assert source.channels == 3
    np.testing.assert_array_equal(whole(source), pillow(path))
    assert "CMYK" in source.notes[0]


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_ycbcr_without_jpeg_becomes_rgb(tmp_path, compression):
    Image.fromarray(photo()).convert("YCbCr").save(tmp_path / "a.tif", compression=compression)
    source = open_source(tmp_path / "a.tif")
    difference = whole(source).astype(int) - pillow(tmp_path / "a.tif")
    assert np.abs(difference).max() <= 1  # Pillow and libtiff round in ways of their own
    assert np.abs(whole(source).astype(int) - photo()).max() <= 3  # 8 bits of YCbCr hold no more
    assert source.notes == ("YCbCr was converted to RGB",)


def test_ycbcr_follows_its_coefficients_and_reference_values(tmp_path):
    rgb, luma = photo().astype(float), (0.2126, 0.7152, 0.0722)
    y = rgb @ luma
    blue, red = (rgb[..., 2] - y) / (2 - 2 * luma[2]), (rgb[..., 0] - y) / (2 - 2 * luma[0])
    stored = np.stack([16 + y * 219 / 255, 128 + blue * 112 / 127, 128 + red * 112 / 127], -1).round().astype(np.uint8)
    numbers = [16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1]
    coefficients = [2126, 10000, 7152, 10000, 722, 10000]
    tifffile.imwrite(
        tmp_path / "a.tif", stored, photometric="ycbcr", subsampling=(1, 1), tile=(32, 32),
        extratags=[(529, 5, 3, coefficients, True), (532, 5, 6, numbers, True)],
    )  # fmt: skip
    difference = whole(open_source(tmp_path / "a.tif")) - rgb
    assert np.abs(difference).max() <= 3
    assert abs(difference.mean()) < 0.1


def test_what_the_jpeg_codec_made_rgb_and_rgb_itself_are_left_alone(tmp_path):
    path = tmp_path / "a.tif"
    options = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "jpeg", "photometric": "YCBCR"}
    with rasterio.open(path, "w", "GTiff", 128, 96, 3, dtype="uint8", interleave="pixel", **options) as dataset:
        dataset.write(np.moveaxis(photo(96, 128), 2, 0))
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages.first.photometric == tifffile.PHOTOMETRIC.YCBCR
    tifffile.imwrite(tmp_path / "rgb.tif", photo(), photometric="rgb", tile=(32, 32))
    for source in (open_source(path), open_source(tmp_path / "rgb.tif")):
        assert np.abs(whole(source).astype(int) - photo(*source.shape)).max() < 12
        assert source.notes == ()
        assert all(part.color is None for part in source._parts[0])


def test_other_colours_are_refused_in_one_sentence(tmp_path):
    image = photo()
    planes = np.moveaxis(inks(), 2, 0)
    options = {"planarconfig": "separate", "photometric": "separated"}
    tifffile.imwrite(tmp_path / "planes.tif", planes, **options)
    tifffile.imwrite(tmp_path / "inks.tif", inks(), photometric="separated", extratags=[(332, 3, 1, 2, True)])
    tifffile.imwrite(tmp_path / "real.tif", inks().astype(np.float32), photometric="separated")
    tifffile.imwrite(tmp_path / "wide.tif", image.astype(np.uint16), photometric="ycbcr", subsampling=(1, 1))
    Image.fromarray(image).convert("LAB").save(tmp_path / "lab.tif")
    for name, what in (
        ("planes", "CMYK colours in separate planes"),
        ("inks", "4 inks that are not CMYK"),
        ("real", "CMYK colours as 32-bit float32 samples"),
        ("wide", "YCbCr colours as 16-bit uint16 samples"),
        ("lab", "CIELab colours"),
    ):
        with pytest.raises(InputError, match=f"^{name}.tif stores {what}; .*: convert the file to RGB first\\.$"):
            open_source(tmp_path / f"{name}.tif")


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_photographs_are_turned_as_viewers_turn_them(tmp_path, turn, suffix):
    path = tmp_path / f"a.{suffix}"
    image = Image.fromarray(photo())
    exif = image.getexif()
    exif[0x112], exif[0x10F] = turn, "a camera with a name"
    image.save(path, exif=exif)
    with Image.open(path) as stored:
        truth = np.asarray(ImageOps.exif_transpose(stored))
    source = open_source(path)
    assert source.shape == truth.shape[:2]
    np.testing.assert_array_equal(whole(source), truth)
    assert source.notes == ((f"it was turned upright as its EXIF orientation {turn} says",) if turn > 1 else ())


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"II",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\xff\xff",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0",
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_damaged_exif_turns_nothing(tmp_path, exif, suffix):
    Image.fromarray(photo()).save(tmp_path / f"a.{suffix}", exif=b"Exif\0\0" + exif)
    assert open_source(tmp_path / f"a.{suffix}").shape == (90, 131)


def test_an_orientation_that_is_ignored_is_said(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", photo(), photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    source = open_source(tmp_path / "a.tif")
    assert source.shape == (90, 131)
    assert source.notes == ("its orientation tag 6 is ignored: rows and columns are used as stored",)


def test_channels_that_are_left_out_are_said(tmp_path):
    image = np.dstack([photo(), photo()])

    def notes(count, **options):
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, image[..., :count], photometric="minisblack", planarconfig="contig", **options)
        return describe(open_source(path))["notes"]

    assert notes(2) == ["of 2 channels only channel 0 is used, as grey; choose others with --channels"]
    five = "of 5 channels numbers 0, 1 and 2 are used as red, green and blue; choose others with --channels"
    assert notes(5) == [five]
    assert notes(2, extrasamples=["unassalpha"]) == []
    assert notes(3) == []


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.svs", "a.mrxs", "a.vrt", "a"])
def test_an_empty_file_is_called_empty(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"the file is empty \(0 bytes\); copy or export it again\.$"):
        open_source(tmp_path / name)


def test_a_result_of_this_package_keeps_its_position(tmp_path):
    place = GeoReference("EPSG:32640", (2.0, 0.0, 300000.0, 0.0, -2.0, 2790000.0))
    store = LabelStore.create(
        tmp_path / "a.ome.zarr", (70, 90), [ClassInfo("water", (0, 0, 255))], pixel_size=PixelSize(2.0, 2.0, "m"),
        georeference=place,
    )  # fmt: skip
    facts = describe(open_source(store.path))
    assert (facts["crs"], facts["transform"]) == (place.crs, list(place.transform))
    metadata = store.path / "zarr.json"
    metadata.write_text(metadata.read_text().replace("300000.0", "NaN"))
    own = own_facts(store.path)
    assert own is not None
    assert usable_place(own) is None
    metadata.write_text("[]")
    assert own_facts(store.path) is None
