"""Where a TIFF lies on the earth, and in which system: what GDAL says of the same file."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
import rasterio.rpc
import tifffile

from napari_isdnet.io.open import open_source
from tests.tiff_tools import from_origin

# GDAL warns about every image that lies nowhere on the earth; some of these do not.
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


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
