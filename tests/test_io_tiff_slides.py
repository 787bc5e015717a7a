"""Slides and microscopy in TIFF: OME, ImageJ, Aperio, Leica."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
import tifffile

from napari_isdnet.io.open import open_source
from napari_isdnet.window import Window
from tests.tiff_tools import check, half, picture

# GDAL warns about every image that lies nowhere on the earth; these do not.
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


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
