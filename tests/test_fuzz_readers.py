"""Malformed files made from good ones: each is read, or refused in one sentence; no crash, hang or memory blow-up."""

from __future__ import annotations

import struct
import time
import tracemalloc

import imagecodecs
import numpy as np
import pytest
import rasterio
import tifffile
import zarr

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.open import open_source
from napari_isdnet.window import Window

pytestmark = [
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
    pytest.mark.timeout(60),
]
RNG = np.random.default_rng(23)
IMAGE = RNG.integers(0, 256, (96, 112, 3), np.uint8)
MEMORY = 256 << 20
SECONDS = 20


def attempt(path):
    """Open, describe and read a corner of every level. True: it was readable; False: refused as it should be."""
    message = None
    tracemalloc.start()
    started = time.monotonic()
    try:
        source = open_source(path, memory=64 << 20)
        try:
            IntensityPolicy.from_source(source)
            for level, (rows, columns) in enumerate(source.levels):
                source.read(Window(0, 0, min(rows, 64), min(columns, 64)), level)
                source.read(Window(rows - 1, columns - 1, 1, 1), level)
        finally:
            source.close()
    except InputError as error:
        message = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MEMORY, f"{peak >> 20} MiB for a file of {path.stat().st_size} bytes"
        assert time.monotonic() - started < SECONDS
    assert message is None or ("\n" not in message and len(message) < 700), "one sentence, one line"
    return message is None


def tiff_bytes(tmp_path, **options):
    path = tmp_path / "good.tif"
    options = {"photometric": "rgb", **options}
    if options.pop("ome", False):
        tifffile.imwrite(path, np.moveaxis(IMAGE, 2, 0), ome=True, photometric="minisblack", tile=(32, 32),
                         metadata={"axes": "CYX", "PhysicalSizeX": 1.0}, compression="zlib")  # fmt: skip
    else:
        tifffile.imwrite(path, IMAGE, metadata=None, **options)
    return path.read_bytes()


GOOD_TIFFS = [
    {"tile": (32, 32), "compression": "jpeg"},
    {"tile": (32, 32), "compression": "zlib", "predictor": True, "bigtiff": True},
    {"rowsperstrip": 8, "compression": "lzw"},
    {"rowsperstrip": 96},
    {"ome": True},
]


@pytest.mark.parametrize("kind", range(len(GOOD_TIFFS)))
def test_truncated_tiffs(tmp_path, kind):
    data = tiff_bytes(tmp_path, **GOOD_TIFFS[kind])
    path = tmp_path / "bad.tif"
    refused = 0
    for length in [0, 1, 4, 7, 8, 9, 15, 16, 40, *(int(v) for v in np.linspace(60, len(data) - 1, 14))]:
        path.write_bytes(data[:length])
        refused += not attempt(path)
    assert refused >= 15
    path.write_bytes(data)
    assert attempt(path)


@pytest.mark.parametrize("kind", range(len(GOOD_TIFFS)))
def test_tiffs_with_flipped_bytes_in_their_tags(tmp_path, kind):
    data = tiff_bytes(tmp_path, **GOOD_TIFFS[kind])
    path = tmp_path / "bad.tif"
    big = data[2] == 43
    start = struct.unpack_from("<Q" if big else "<I", data, 8 if big else 4)[0]
    count = struct.unpack_from("<Q" if big else "<H", data, start)[0]
    size = count * (20 if big else 12) + (16 if big else 6)
    rng = np.random.default_rng(kind)
    outcomes = []
    for _ in range(40):
        bad = bytearray(data)
        for place in rng.integers(start, start + size, int(rng.integers(1, 5))):
            bad[place] = int(rng.integers(0, 256))
        path.write_bytes(bad)
        outcomes.append(attempt(path))
    assert not all(outcomes)


@pytest.mark.parametrize("kind", range(len(GOOD_TIFFS)))
@pytest.mark.parametrize(
    ("code", "values"),
    [(256, (0, 2**31, 2**32 - 1)), (257, (0, 2**31, 2**32 - 1)), (277, (0, 60000)), (258, (0, 7, 65535)),
     (259, (0, 12345, 34712, 50001)), (278, (0, 2**32 - 1)), (322, (0, 2**31)), (323, (0, 2**31)), (262, (6, 60000)),
     (339, (0, 9)), (284, (0, 2, 9)), (317, (7,))],
)  # fmt: skip
def test_tiffs_with_hostile_tags(tmp_path, kind, code, values):
    path = tmp_path / "bad.tif"
    for value in values:
        path.write_bytes(tiff_bytes(tmp_path, **GOOD_TIFFS[kind]))
        with tifffile.TiffFile(path, mode="r+b") as tif:
            tag = tif.pages[0].tags.get(code)
            if tag is None:
                continue
            where, wide = tag.offset, tif.is_bigtiff
        with path.open("r+b") as file:
            # Type LONG, one value, written in place.
            file.seek(where + 2)
            file.write(struct.pack("<HQQ" if wide else "<HII", 4, 1, value))
        attempt(path)


def test_page_chains_that_loop_and_tags_of_gigabytes(tmp_path):
    path = tmp_path / "bad.tif"
    data = bytearray(tiff_bytes(tmp_path, rowsperstrip=8))
    start = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, start)[0]
    looped = bytearray(data)
    struct.pack_into("<I", looped, start + 2 + 12 * count, start)
    path.write_bytes(looped)
    with pytest.raises(InputError, match="loops"):
        open_source(path)
    for i in range(count):
        bad = bytearray(data)
        struct.pack_into("<I", bad, start + 2 + 12 * i + 4, 2**32 - 1)
        path.write_bytes(bad)
        with pytest.raises(InputError, match="claims"):
            open_source(path)


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE z [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi"))
    + ']><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">&i;</OME>'
)


def test_xml_bombs_are_refused(tmp_path):
    path = tmp_path / "bomb.ome.tif"
    for text in (BOMB, BOMB.replace("<!DOCTYPE", "<!doctype"), BOMB.replace("&i;", "")):
        tifffile.imwrite(path, IMAGE, description=text, metadata=None, photometric="rgb")
        with pytest.raises(InputError, match="XML entities"):
            open_source(path)
    good = tmp_path / "good.ome.tif"
    tifffile.imwrite(good, IMAGE, description="<OME><Pixels", metadata=None, photometric="rgb")
    attempt(good)


def test_ome_xml_that_lies(tmp_path):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, np.moveaxis(IMAGE, 2, 0), photometric="minisblack", metadata={"axes": "CYX"})
    data = path.read_bytes()
    for old, new in ((b'SizeC="3"', b'SizeC="9"'), (b'SizeX="112"', b'SizeX="999"'), (b'SizeY="96"', b'SizeY="00"'),
                     (b'SizeC="3"', b'SizeC="x"'), (b"DimensionOrder", b"dimensionOrder"),
                     (b'Type="uint8"', b'Type="float"'),
                     (b"<Pixels", b"<Pixel "), (b"</OME>", b"</oME>")):  # fmt: skip
        assert old in data
        path.write_bytes(data.replace(old, new))
        attempt(path)


def picture_files():
    gray = np.ascontiguousarray(IMAGE[..., 0])
    return {
        "a.png": imagecodecs.png_encode(IMAGE),
        "b.png": imagecodecs.png_encode(gray),
        "a.jpg": imagecodecs.jpeg_encode(IMAGE),
        "a.jp2": imagecodecs.jpeg2k_encode(IMAGE, codecformat="jp2"),
        "a.j2k": imagecodecs.jpeg2k_encode(IMAGE, codecformat="j2k"),
    }


@pytest.mark.parametrize("name", list(picture_files()))
@pytest.mark.parametrize("with_gdal", [True, False])
def test_broken_pictures(tmp_path, monkeypatch, name, with_gdal):
    if not with_gdal:
        monkeypatch.setattr("napari_isdnet.io.open._has", lambda module: False)
    data = picture_files()[name]
    path = tmp_path / name
    path.write_bytes(data)
    assert attempt(path)
    rng = np.random.default_rng(1)
    for length in np.linspace(0, len(data) // 2, 8).astype(int):
        path.write_bytes(data[:length])
        attempt(path)
    outcomes = []
    for _ in range(15):
        bad = bytearray(data)
        for place in rng.integers(8, 200, 3):
            bad[place] = int(rng.integers(0, 256))
        path.write_bytes(bad)
        outcomes.append(attempt(path))
    assert not all(outcomes)


def test_pictures_that_claim_to_be_huge_are_refused_by_their_header(tmp_path, monkeypatch):
    monkeypatch.setattr("napari_isdnet.io.open._has", lambda module: False)
    files = picture_files()
    png = bytearray(files["a.png"])
    struct.pack_into(">II", png, 16, 2**31 - 1, 2**31 - 1)
    jpeg = bytearray(files["a.jpg"])
    at = max(jpeg.find(b"\xff\xc0"), jpeg.find(b"\xff\xc2"))
    struct.pack_into(">HH", jpeg, at + 5, 65500, 65500)
    codestream = bytearray(files["a.j2k"])
    struct.pack_into(">II", codestream, 8, 2**31, 2**31)
    for name, data in (("a.png", png), ("a.jpg", jpeg), ("a.j2k", codestream)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match="must be decoded whole"):
            open_source(tmp_path / name)
        assert not attempt(tmp_path / name)


ZARR_EDITS = [
    ('"shape":[96,112]', '"shape":[-1,112]'),
    ('"shape":[96,112]', '"shape":[960000000000,1120000000000]'),
    ('"shape":[96,112]', '"shape":[]'),
    ('"shape":[96,112]', '"shape":"big"'),
    ('"chunk_shape":[32,32]', '"chunk_shape":[0,32]'),
    ('"chunk_shape":[32,32]', '"chunk_shape":[9000000,9000000]'),
    ('"data_type":"uint8"', '"data_type":"object"'),
    ('"data_type":"uint8"', '"data_type":"float64"'),
    ('"data_type":"uint8"', '"data_type":"complex64"'),
    ('"zarr_format":3', '"zarr_format":9'),
    ('"node_type":"array"', '"node_type":"group"'),
    ('"fill_value":0', '"fill_value":"x"'),
    ('"name":"bytes"', '"name":"nonsense"'),
    ("{", ""),
    ("}", "}}"),
    ("a", "\x00"),
]
GROUP_EDITS = [
    ('"path":"0"', '"path":"7"'), ('"path":"0"', '"path":"/etc"'), ('"path":"0"', '"path":"../.."'),
    ('"path":"0"', '"path":null'), ('"name":"y"', '"name":"x"'), ('"name":"y"', '"name":7'),
    ('"axes":[', '"axes":[[],'),
    ('"datasets":[{', '"datasets":[[],{'), ('"datasets"', '"data"'), ('"multiscales":[', '"multiscales":[[],'),
    ('"multiscales"', '"labels"'), ('"scale":[', '"scale":["a",'), ('"type":"scale"', '"type":7'),
    ('"ome":{', '"ome":[{'),
]  # fmt: skip


@pytest.mark.parametrize("target", ["array", "group"])
def test_broken_zarr_metadata(tmp_path, target):
    path = tmp_path / "a.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=3)
    group.create_array("0", data=np.ascontiguousarray(IMAGE[..., 0]), chunks=(32, 32))
    scale = [{"type": "scale", "scale": [1.0, 1.0]}]
    axes = [{"name": "y", "type": "space", "unit": "micrometer"}, {"name": "x", "type": "space"}]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    assert attempt(path)
    file = path / "0" / "zarr.json" if target == "array" else path / "zarr.json"
    good = "".join(line.strip() for line in file.read_text().splitlines()).replace('": ', '":').replace(", ", ",")
    refused = 0
    for old, new in ZARR_EDITS if target == "array" else GROUP_EDITS:
        assert old in good, old
        file.write_text(good.replace(old, new, 1))
        refused += not attempt(path)
    file.write_bytes(b"\xff\xfe" + good.encode())
    refused += not attempt(path)
    assert refused >= 10
    file.write_text(good)
    assert attempt(path)
    for chunk in (path / "0" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(chunk.read_bytes()[:9])
    assert not attempt(path)


def test_every_byte_of_a_geotiff_header_may_be_wrong(tmp_path):
    path = tmp_path / "g.tif"
    profile = {"driver": "GTiff", "height": 40, "width": 40, "count": 1, "dtype": "int16", "crs": "EPSG:32632"}
    with rasterio.open(path, "w", transform=rasterio.Affine(1, 0, 5, 0, -1, 9), nodata=-1, **profile) as dataset:
        dataset.write(np.ones((1, 40, 40), np.int16))
    data = path.read_bytes()
    assert attempt(path)
    for place in range(8, min(len(data), 420), 3):
        bad = bytearray(data)
        bad[place] ^= 0xFF
        path.write_bytes(bad)
        attempt(path)
