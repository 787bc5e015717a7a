"""Every kind of TIFF, written by tifffile or GDAL and read by another reader than ours for comparison."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
import rasterio.rpc
import tifffile
from rasterio.enums import Resampling

from napari_isdnet.io.open import open_source
from napari_isdnet.io.source import ImageSource
from napari_isdnet.window import Window

RNG = np.random.default_rng(7)
# GDAL warns about every image that lies nowhere on the earth; most of these do not.
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def from_origin(west, north, column, row):
    return rasterio.Affine(column, 0, west, 0, -row, north)


def picture(rows=150, columns=201, channels=3, dtype=np.uint8):
    """Smooth structure plus noise, all values of the type in use."""
    y, x = np.mgrid[:rows, :columns]
    base = np.stack([np.sin(x / (9 + c)) + np.cos(y / (7 + c)) for c in range(channels)], axis=-1)
    scaled = (base + 2) / 4 + RNG.normal(0, 0.01, base.shape)
    if np.dtype(dtype).kind == "f":
        return scaled.astype(dtype)
    return (np.clip(scaled, 0, 1) * np.iinfo(dtype).max).astype(dtype)


def windows_of(shape, count=12, seed=3):
    rng = np.random.default_rng(seed)
    yield Window(0, 0, *shape)
    yield Window(shape[0] - 1, shape[1] - 1, 1, 1)
    for _ in range(count):
        top, left = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        yield Window(
            int(top), int(left), int(rng.integers(1, shape[0] - top + 1)), int(rng.integers(1, shape[1] - left + 1))
        )


def check(source: ImageSource, truth: list[np.ndarray]):
    """Random windows of every level equal the crop of an independent full decode."""
    assert isinstance(source, ImageSource)
    assert [tuple(level) for level in source.levels] == [t.shape[:2] for t in truth]
    for level, full in enumerate(truth):
        full = full if full.ndim == 3 else full[..., np.newaxis]
        assert source.channels == full.shape[2]
        for window in windows_of(full.shape[:2]):
            crop = source.read(window, level)
            assert crop.dtype == source.dtype == full.dtype
            np.testing.assert_array_equal(crop, full[window.slices])


def half(image):
    return np.ascontiguousarray(image[::2, ::2])


LAYOUTS = [
    {"tile": (64, 48), "compression": "zlib", "predictor": True},
    {"tile": (64, 64), "compression": "lzw", "byteorder": ">"},
    {"tile": (64, 64), "compression": "zstd", "bigtiff": True},
    {"tile": (64, 64)},
    {"rowsperstrip": 7, "compression": "zlib"},
    {"rowsperstrip": 7},
    {"rowsperstrip": 1000},
    {"rowsperstrip": 1000, "byteorder": ">", "bigtiff": True},
]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("layout", LAYOUTS, ids=[str(i) for i in range(len(LAYOUTS))])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_layouts_against_gdal(tmp_path, dtype, layout, planar):
    image = picture(dtype=dtype)
    options = dict(layout)
    if options.get("predictor") and np.dtype(dtype).kind == "f":
        options["predictor"] = 3
    data = image if planar == "contig" else np.moveaxis(image, 2, 0)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, data, photometric="rgb", planarconfig=planar, metadata=None, **options)
    with rasterio.open(path) as dataset:
        truth = np.moveaxis(dataset.read(), 0, 2)
    np.testing.assert_array_equal(truth, image)
    source = open_source(path)
    check(source, [truth])
    source.close()


def test_jpeg_pyramid_in_subifds_equals_tifffile(tmp_path):
    path = tmp_path / "pyramid.tif"
    levels = [picture(300, 260), picture(150, 130), picture(75, 65)]
    with tifffile.TiffWriter(path) as writer:
        options = {"tile": (64, 64), "compression": "jpeg", "photometric": "rgb"}
        writer.write(levels[0], subifds=2, **options)
        for level in levels[1:]:
            writer.write(level, subfiletype=1, **options)
    with tifffile.TiffFile(path) as tif:
        truth = [level.asarray() for level in tif.series[0].levels]
    check(open_source(path), truth)


def test_gdal_jpeg_ycbcr_overviews_nodata_and_position(tmp_path):
    path = tmp_path / "geo.tif"
    image = picture(300, 260)
    transform = from_origin(500000, 5400000, 0.25, 0.5)
    profile = {
        "driver": "GTiff",
        "height": 300,
        "width": 260,
        "count": 3,
        "dtype": "uint8",
        "crs": "EPSG:32632",
    }
    with rasterio.open(
        path,
        "w",
        tiled=True,
        blockxsize=64,
        blockysize=64,
        compress="JPEG",
        photometric="YCBCR",
        nodata=0,
        transform=transform,
        **profile,
    ) as dataset:
        dataset.write(np.moveaxis(image, 2, 0))
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], Resampling.average)
    truth = []
    for options in ({}, {"OVERVIEW_LEVEL": 0}, {"OVERVIEW_LEVEL": 1}):
        with rasterio.open(path, **options) as dataset:
            truth.append(np.moveaxis(dataset.read(), 0, 2))
    source = open_source(path)
    with tifffile.TiffFile(path) as tif:
        check(source, [page.asarray() for page in tif.pages])
    for level, expected in enumerate(truth):
        # GDAL brings its own JPEG decoder, which interpolates the subsampled colours differently: compare the luma.
        crop = source.read(Window(0, 0, *expected.shape[:2]), level)
        difference = (crop.astype(float) - expected) @ (0.299, 0.587, 0.114)
        assert np.abs(difference).mean() < 1
    assert source.georeference.crs == "EPSG:32632"
    assert source.georeference.transform == tuple(transform)[:6]
    assert (source.pixel_size.row, source.pixel_size.column, source.pixel_size.unit) == (0.5, 0.25, "m")
    assert source.nodata == 0
    assert source.format == "GeoTIFF"


def test_cog_with_internal_mask_has_alpha(tmp_path):
    path = tmp_path / "cog.tif"
    image = picture(200, 200)
    mask = np.zeros((200, 200), np.uint8)
    mask[20:150, 30:170] = 255
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", driver="GTiff", height=200, width=200, count=3, dtype="uint8", tiled=True, blockxsize=64,
            blockysize=64, compress="DEFLATE", photometric="RGB", crs="EPSG:3857", transform=from_origin(0, 0, 1, 1),
        ) as dataset,
    ):  # fmt: skip
        dataset.write(np.moveaxis(image, 2, 0))
        dataset.write_mask(mask)
    source = open_source(path)
    assert (source.channels, source.alpha) == (4, 3)
    check(source, [np.dstack([image, mask])])


def test_crs_without_a_code_and_feet(tmp_path):
    crs = rasterio.CRS.from_proj4("+proj=tmerc +lat_0=1 +lon_0=2 +k=0.9 +x_0=7 +y_0=9 +ellps=GRS80 +units=m")
    path = tmp_path / "custom.tif"
    profile = {
        "driver": "GTiff",
        "height": 8,
        "width": 8,
        "count": 1,
        "dtype": "uint8",
        "transform": from_origin(5, 6, 2, 2),
    }
    with rasterio.open(path, "w", crs=crs, **profile) as dataset:
        dataset.write(np.ones((1, 8, 8), np.uint8))
    assert rasterio.CRS.from_string(open_source(path).georeference.crs) == crs
    with rasterio.open(tmp_path / "feet.tif", "w", crs="EPSG:2263", **profile) as dataset:
        dataset.write(np.ones((1, 8, 8), np.uint8))
    assert open_source(tmp_path / "feet.tif").pixel_size.metres == pytest.approx(2 * 1200 / 3937)
    with rasterio.open(tmp_path / "degrees.tif", "w", crs="EPSG:4326", **profile) as dataset:
        dataset.write(np.ones((1, 8, 8), np.uint8))
    source = open_source(tmp_path / "degrees.tif")
    assert (source.pixel_size.unit, source.pixel_size.metres, source.georeference.crs) == ("degree", None, "EPSG:4326")


@pytest.mark.parametrize("system", ["ESRI:54009", "+proj=geos +h=35785831 +lon_0=0 +ellps=GRS80"])
def test_systems_for_which_geotiff_has_no_keys_are_those_of_gdal(tmp_path, system):
    crs, path = rasterio.CRS.from_user_input(system), tmp_path / "a.tif"
    profile = {"driver": "GTiff", "height": 8, "width": 8, "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", crs=crs, transform=from_origin(5, 6, 100, 50), **profile) as dataset:
        dataset.write(np.ones((1, 8, 8), np.uint8))
    source = open_source(path)
    with rasterio.open(path) as dataset:
        assert rasterio.CRS.from_string(source.georeference.crs) == dataset.crs
    assert (source.pixel_size.row, source.pixel_size.column, source.pixel_size.unit) == (50, 100, "m")


def test_codes_beyond_those_of_epsg_are_not_taken_for_them(tmp_path):
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 54009)  # Mollweide, by ESRI's number
    tifffile.imwrite(
        tmp_path / "esri.tif", np.ones((8, 8), np.uint8), photometric="minisblack",
        extratags=[(33550, "d", 3, (2.0, 2.0, 0.0)), (33922, "d", 6, (0.0, 0.0, 0.0, 5.0, 6.0, 0.0)),
                   (34735, "H", len(keys), keys)],
    )  # fmt: skip
    place = open_source(tmp_path / "esri.tif").georeference
    assert place.transform == (2, 0, 5, 0, -2, 6)
    assert place.crs is None or not place.crs.startswith("EPSG:")


def test_control_points_are_no_grid_and_the_note_says_what_to_do(tmp_path):
    points = [rasterio.control.GroundControlPoint(r, c, 100 + 2 * c, 200 - 2 * r) for r, c in ((0, 0), (0, 8), (8, 0))]
    path = tmp_path / "gcp.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=8, width=8, count=1, dtype="uint8", crs="EPSG:32640", gcps=points
    ) as dataset:
        dataset.write(np.ones((1, 8, 8), np.uint8))
    source = open_source(path)
    assert source.georeference is None
    assert any("3 ground control points are not used: warp it" in note for note in source.notes)


def test_rational_polynomials_are_no_grid_and_the_note_says_what_to_do(tmp_path):
    one, other = [1.0] + [0.0] * 19, [0.0, 1.0] + [0.0] * 18
    numbers = {"lat_off": 25, "lat_scale": 1, "long_off": 55, "long_scale": 1, "height_off": 0, "height_scale": 1}
    numbers |= {"line_off": 4, "line_scale": 4, "samp_off": 4, "samp_scale": 4}
    rpcs = rasterio.rpc.RPC(
        **numbers, line_den_coeff=one, samp_den_coeff=one, line_num_coeff=other, samp_num_coeff=other
    )
    path = tmp_path / "rpc.tif"
    with rasterio.open(path, "w", driver="GTiff", height=8, width=8, count=1, dtype="uint8", rpcs=rpcs) as dataset:
        dataset.write(np.ones((1, 8, 8), np.uint8))
    source = open_source(path)
    assert source.georeference is None
    assert any("rational polynomials (RPC) are not used: orthorectify" in note for note in source.notes)


def test_the_transform_of_an_image_without_a_place_is_none(tmp_path):
    profile = {"driver": "GTiff", "height": 8, "width": 8, "count": 1, "dtype": "uint8", "nodata": 255}
    for name, crs in (("a", None), ("b", "EPSG:32640")):  # as a profile of such an image is written back
        with rasterio.open(tmp_path / name, "w", **profile, crs=crs, transform=rasterio.Affine.identity()) as data:
            data.write(np.ones((1, 8, 8), np.uint8))
    assert open_source(tmp_path / "a").georeference is None
    assert open_source(tmp_path / "b").georeference.transform == (1, 0, 0, 0, 1, 0)


def test_pixel_is_point_is_shifted_to_corners_as_gdal_does(tmp_path):
    path = tmp_path / "point.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=4, width=5, count=1, dtype="uint8", crs="EPSG:3857",
        transform=from_origin(100, 200, 3, 2),
    ) as dataset:  # fmt: skip
        dataset.update_tags(AREA_OR_POINT="Point")
        dataset.write(np.ones((1, 4, 5), np.uint8))
    with rasterio.open(path) as dataset:
        expected = tuple(dataset.transform)[:6]
    assert open_source(path).georeference.transform == pytest.approx(expected)


def test_sparse_tiles_are_nodata(tmp_path):
    path = tmp_path / "sparse.tif"
    profile = {
        "driver": "GTiff",
        "height": 256,
        "width": 256,
        "count": 1,
        "dtype": "uint16",
        "nodata": 77,
        "tiled": True,
    }
    with rasterio.open(
        path, "w", blockxsize=64, blockysize=64, sparse_ok=True, compress="DEFLATE", crs="EPSG:3857",
        transform=from_origin(0, 0, 1, 1), **profile,
    ) as dataset:  # fmt: skip
        dataset.write(np.full((1, 64, 64), 5, np.uint16), window=rasterio.windows.Window(64, 64, 64, 64))
    with rasterio.open(path) as dataset:
        truth = dataset.read(1)
    assert set(np.unique(truth)) == {5, 77}
    check(open_source(path), [truth])


def test_rgba_palette_and_bilevel(tmp_path):
    rgba = np.dstack([picture(), np.full((150, 201), 255, np.uint8)])
    tifffile.imwrite(tmp_path / "rgba.tif", rgba, photometric="rgb", extrasamples=["unassalpha"], tile=(64, 64))
    source = open_source(tmp_path / "rgba.tif")
    assert source.alpha == 3
    check(source, [rgba])
    indices = picture(channels=1)[..., 0]
    with rasterio.open(tmp_path / "pal.tif", "w", driver="GTiff", height=150, width=201, count=1, dtype="uint8",
                       crs="EPSG:3857", transform=from_origin(0, 0, 1, 1)) as dataset:  # fmt: skip
        table = {i: (i, 255 - i, i // 2, 255) for i in range(256)}
        dataset.write_colormap(1, table)
        dataset.write(indices, 1)
    check(open_source(tmp_path / "pal.tif"), [np.array([table[i][:3] for i in range(256)], np.uint8)[indices]])
    bits = indices > 128
    tifffile.imwrite(tmp_path / "bits.tif", bits, photometric="minisblack", rowsperstrip=9)
    check(open_source(tmp_path / "bits.tif"), [bits * np.uint8(255)])


def test_ome_tiff_with_channels_size_and_pyramid(tmp_path):
    path = tmp_path / "fluorescence.ome.tif"
    image = np.moveaxis(picture(300, 260, 5, np.uint16), 2, 0)
    metadata = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.25,
                "PhysicalSizeYUnit": "µm"}  # fmt: skip
    with tifffile.TiffWriter(path, ome=True) as writer:
        options = {"tile": (64, 64), "compression": "zlib", "photometric": "minisblack"}
        writer.write(image, subifds=1, metadata=metadata, **options)
        writer.write(image[:, ::2, ::2], subfiletype=1, **options)
    source = open_source(path)
    assert source.name == "fluorescence"
    check(source, [np.moveaxis(image, 0, 2), np.moveaxis(image[:, ::2, ::2], 0, 2)])
    assert source.pixel_size.row == 0.25
    assert source.pixel_size.metres == pytest.approx((0.5 * 0.25) ** 0.5 * 1e-6)
    with rasterio.open(f"GTIFF_DIR:3:{path}") as dataset:
        np.testing.assert_array_equal(source.read(Window(3, 4, 50, 60))[..., 2], dataset.read(1)[3:53, 4:64])


def test_other_axes_take_the_first_index_and_say_so(tmp_path):
    path = tmp_path / "stack.ome.tif"
    stack = (
        np.stack([np.moveaxis(picture(90, 80, 2, np.uint16), 2, 0)] * 3)
        + np.arange(3, dtype=np.uint16)[:, None, None, None]
    )
    tifffile.imwrite(path, stack, metadata={"axes": "ZCYX"}, photometric="minisblack")
    source = open_source(path)
    check(source, [np.moveaxis(stack[0], 0, 2)])
    assert source.notes == ("axis Z has 3 planes, the first is used",)
    path = tmp_path / "imagej.tif"
    tifffile.imwrite(path, stack, imagej=True, metadata={"axes": "ZCYX", "unit": "um"}, resolution=(4.0, 2.0))
    source = open_source(path)
    check(source, [np.moveaxis(stack[0], 0, 2)])
    assert (source.pixel_size.row, source.pixel_size.column) == (0.5, 0.25)


def test_aperio_and_page_pyramids(tmp_path):
    path = tmp_path / "slide.svs"
    levels = [picture(512, 640), picture(128, 160)]
    text = "Aperio Image Library v11.2.1 \r\n640x512 [0,0 640x512] (64x64) JPEG/RGB Q=70|AppMag = 20|MPP = 0.4990"
    options = {"tile": (64, 64), "compression": "jpeg", "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        writer.write(levels[0], description=text, **options)
        writer.write(picture(96, 120), description=text, compression="jpeg", photometric="rgb", metadata=None)
        writer.write(levels[1], description=text, **options)
    with tifffile.TiffFile(path) as tif:
        assert tif.is_svs
        truth = [tif.pages[0].asarray(), tif.pages[2].asarray()]
    source = open_source(path)
    check(source, truth)
    assert source.format == "SVS"
    assert source.pixel_size.metres == pytest.approx(0.499e-6)
    with tifffile.TiffWriter(tmp_path / "pages.tif") as writer:
        for image in (picture(256, 256), picture(128, 128), picture(64, 64)):
            writer.write(image, **options)
    with tifffile.TiffFile(tmp_path / "pages.tif") as tif:
        check(open_source(tmp_path / "pages.tif"), [page.asarray() for page in tif.pages])


def test_the_slide_of_a_file_that_begins_with_label_and_overview(tmp_path):
    slide, path = picture(300, 260), tmp_path / "slide.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(picture(90, 60), photometric="rgb", metadata={"axes": "YXS", "Name": "label"})
        macro = {"axes": "YXS", "Name": "macro", "PhysicalSizeX": 30.0, "PhysicalSizeY": 30.0}
        writer.write(picture(60, 120), photometric="rgb", metadata=macro)
        about = {"axes": "YXS", "Name": "case 7", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5}
        writer.write(slide, subifds=1, tile=(64, 64), photometric="rgb", metadata=about)
        writer.write(half(slide), subfiletype=1, tile=(64, 64), photometric="rgb")
    source = open_source(path)
    check(source, [slide, half(slide)])
    assert (source.pixel_size.row, source.pixel_size.column, source.pixel_size.unit) == (0.5, 0.25, "µm")
    assert source.notes == ("the largest of the 3 images in the file ('case 7') is read",)
    source.close()


def test_a_leica_slide_is_read_and_not_its_view_of_the_glass(tmp_path):
    pages = [picture(120, 60), picture(60, 30), picture(300, 260), picture(150, 130)]

    def image(name, first):
        levels = "".join(
            f'<dimension sizeX="{pages[n].shape[1]}" sizeY="{pages[n].shape[0]}" r="{n - first}" ifd="{n}"/>'
            for n in (first, first + 1)
        )
        return f'<image name="{name}"><pixels>{levels}</pixels></image>'

    space = 'xmlns="http://www.leica-microsystems.com/scn/2010/10/01"'
    text = f'<?xml version="1.0"?><scn {space}><collection>{image("glass", 0)}{image("tissue", 2)}</collection></scn>'
    path = tmp_path / "slide.scn"
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for n, page in enumerate(pages):
            options = {"tile": (64, 64), "photometric": "rgb", "resolution": (20_000, 20_000)}
            options |= {"resolutionunit": "CENTIMETER", "metadata": None, "description": text if n == 0 else None}
            writer.write(page, subfiletype=n % 2, **options)
    source = open_source(path)
    check(source, pages[2:])
    assert source.pixel_size.metres == pytest.approx(5e-7)
    assert source.notes == ("the largest of the 2 images in the file ('tissue') is read",)
    source.close()
