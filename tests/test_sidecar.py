"""World files beside pictures, held against GDAL."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import rasterio
import rasterio.shutil
from PIL import Image

from napari_isdnet.io.open import open_source
from napari_isdnet.io.source import GeoReference
from tests.test_io_mishaps import gdal, noise

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.mark.parametrize(
    ("image", "world"), [("a.jpg", "a.jgw"), ("a.png", "a.pngw"), ("a.tif", "a.tfw"), ("a.tif", "a.wld")]
)
@pytest.mark.parametrize("system", [True, False])
def test_a_world_file_gives_the_position_that_gdal_finds(tmp_path: Path, image: str, world: str, system: bool) -> None:
    Image.fromarray(noise(40, 50, 3)).save(tmp_path / image)
    (tmp_path / world).write_text("0.25\n0.05\n0.04\n-0.25\n500000.125\n5000000.0\n")
    if system:
        (tmp_path / "a.prj").write_text(rasterio.CRS.from_epsg(32633).to_wkt())
    with closing(open_source(tmp_path / image)) as source, rasterio.open(tmp_path / image) as data:
        assert source.georeference is not None
        assert source.georeference.transform == pytest.approx(tuple(data.transform)[:6])
        assert source.georeference.crs == ("EPSG:32633" if system else None)
        assert (source.pixel_size is not None) == system
        assert any("its position comes from" in note for note in source.notes)  # type: ignore[attr-defined]


@pytest.mark.parametrize("system", [True, False])
def test_a_position_that_gdal_wrote_beside_a_picture_is_found(tmp_path: Path, system: bool) -> None:
    gdal(
        tmp_path / "a.png", noise(40, 50), driver="PNG", crs="EPSG:32633" if system else None,
        transform=rasterio.Affine(0.5, 0.1, 400000, 0.1, -0.5, 5000000),
    )  # fmt: skip
    assert (tmp_path / "a.png.aux.xml").is_file()
    with closing(open_source(tmp_path / "a.png")) as source:
        place = GeoReference("EPSG:32633" if system else None, (0.5, 0.1, 400000.0, 0.1, -0.5, 5000000.0))
        assert source.georeference == place
        assert (source.pixel_size is not None) == system
        assert "its position comes from a.png.aux.xml" in source.notes  # type: ignore[attr-defined]


@pytest.mark.parametrize("stale", [False, True])
def test_a_world_file_that_gdal_wrote_too_does_not_hide_the_system(tmp_path: Path, stale: bool) -> None:
    own = gdal(
        tmp_path / "o.tif", noise(40, 50), crs="EPSG:32633", transform=rasterio.Affine(0.5, 0.1, 4e5, 0.1, -1, 5e6)
    )
    with rasterio.open(own) as data:
        rasterio.shutil.copy(data, tmp_path / "a.png", driver="PNG", WORLDFILE="YES")
    if stale:  # a world file of before: GDAL goes by its own file
        (tmp_path / "a.wld").write_text("1\n0\n0\n-1\n0\n0\n")
    with closing(open_source(tmp_path / "a.png")) as source, rasterio.open(tmp_path / "a.png") as data:
        assert source.georeference == GeoReference("EPSG:32633", tuple(data.transform)[:6])
        assert source.pixel_size is not None
        assert source.pixel_size.unit == "m"


def test_a_system_that_was_assigned_beside_a_tiff_is_its_own(tmp_path: Path) -> None:
    path = gdal(tmp_path / "a.tif", noise(40, 50), transform=rasterio.Affine(0.5, 0, 4e5, 0, -0.5, 5e6))
    (tmp_path / "a.tif.aux.xml").write_text("<PAMDataset><SRS>EPSG:32633</SRS></PAMDataset>")
    with closing(open_source(path)) as source, rasterio.open(path) as data:
        assert source.georeference == GeoReference(f"EPSG:{data.crs.to_epsg()}", tuple(data.transform)[:6])
        assert source.pixel_size is not None
        assert source.pixel_size.metres == 0.5
        assert "its reference system comes from a file beside it" in source.notes  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("<PAMDataset><Histograms/></PAMDataset>", None),
        ("<PAMDataset><GeoTransform>1, 2, x</GeoTransform></PAMDataset>", "damaged"),
        ("<PAMDataset><GeoTransform>0, 1, 2, 0, 1, 2</GeoTransform></PAMDataset>", "damaged"),
        ("<PAMDataset><GCPList><GCP/></GCPList></PAMDataset>", "control points"),
    ],
)
def test_what_gdal_wrote_beside_a_picture_is_used_or_said(tmp_path: Path, text: str, note: str | None) -> None:
    Image.fromarray(noise(40, 50, 3)).save(tmp_path / "a.png")
    (tmp_path / "a.png.aux.xml").write_text(text)
    with closing(open_source(tmp_path / "a.png")) as source:
        assert source.georeference is None
        notes = source.notes  # type: ignore[attr-defined]
        assert any(note in text for text in notes) if note else not notes


def test_a_damaged_world_file_is_said_and_an_own_position_goes_before_it(tmp_path: Path) -> None:
    Image.fromarray(noise(40, 50, 3)).save(tmp_path / "a.png")
    (tmp_path / "a.pgw").write_text("0.25\nnothing\n")
    with closing(open_source(tmp_path / "a.png")) as source:
        assert source.georeference is None
        assert any("damaged" in note for note in source.notes)  # type: ignore[attr-defined]
    own = gdal(tmp_path / "o.tif", noise(16, 16), crs="EPSG:32633", transform=rasterio.Affine(2, 0, 5, 0, -2, 9))
    (tmp_path / "o.tfw").write_text("1\n0\n0\n-1\n0\n0\n")
    with closing(open_source(own)) as source:
        assert source.georeference == GeoReference("EPSG:32633", (2.0, 0.0, 5.0, 0.0, -2.0, 9.0))
