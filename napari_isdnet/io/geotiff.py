"""GeoTIFF export: a cloud-optimised GeoTIFF with our own overviews; class maps with colours and category names."""

from __future__ import annotations

from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.exceptions import InputError, MissingExtra
from napari_isdnet.io.base import one_line
from napari_isdnet.io.disk import remove, replacing, write_atomic
from napari_isdnet.io.pyramid import QUANTA
from napari_isdnet.io.source import GeoReference
from napari_isdnet.io.tiff_layout import quiet_tifffile
from napari_isdnet.io.tiff_pyramid import stepped, total_work, write_pyramid
from napari_isdnet.io.units import metres_of
from napari_isdnet.progress import Progress
from napari_isdnet.system import move

if TYPE_CHECKING:
    from napari_isdnet.io.store import LabelStore

_GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)


def export_geotiff(store: LabelStore, path: Path, overwrite: bool) -> Generator[Progress, None, Path]:
    """Write a finished store as GeoTIFF: 512 tiles, overviews, CRS and transform, nodata 255.

    Labels have a colour table. Probabilities (a band a class, with its name) and uncertainty stay 8 bit and carry
    GDAL's scale of 1/254, so that QGIS shows 0.0 to 1.0.

    With rasterio the file is laid out as COG. Without it an image that has no CRS becomes a plain tiled TIFF with
    overviews, and one that has raises :class:`~napari_isdnet.exceptions.MissingExtra`. Class names go to the metadata
    (``CLASS_0`` ...) and, as GDAL's category names of labels, to the side file ``<path>.aux.xml``, where QGIS looks for
    them.
    """
    with replacing(path, overwrite) as temporary:
        plain = temporary.with_name(f"{temporary.name}.plain.tif")
        try:
            tags = [*geo_tags(store.georeference), *_gdal_tags(store)]
            first = {"metadata": None, "extratags": tags, **_density(store)}

            def work(tick: Any) -> None:
                # The intermediate file is read once by GDAL and thrown away, so its codec is the fast one.
                codec = "zstd" if _has_rasterio() else "zlib"
                write_pyramid(store, plain, tick, compression=codec, subifds=False, first=first)
                if _has_rasterio():
                    _to_cog(plain, temporary)

            yield from stepped(work, total_work(store), "export geotiff")
            if not _has_rasterio():
                move(plain, temporary)
            names = path.with_name(f"{path.name}.aux.xml")
            if store.kind == "labels":
                write_atomic(names, _category_names(store))
            else:
                remove(names)  # of a class map that was there before
        finally:
            remove(plain)
            remove(temporary.with_name(f"{temporary.name}.aux.xml"))
    return path


def _has_rasterio() -> bool:
    return find_spec("rasterio") is not None


def geo_tags(reference: GeoReference | None) -> list[tuple[int, int, int, Any, bool]]:
    """The GeoTIFF tags (OGC 19-008r4) of a position, as tifffile wants them: GDAL writes them to a 1-pixel file."""
    if reference is None:
        return []
    if not _has_rasterio():
        raise MissingExtra("Writing a coordinate reference system", "rasterio", "geo")
    import rasterio
    import tifffile
    from rasterio.errors import CRSError, RasterioError
    from rasterio.io import MemoryFile

    try:
        with rasterio.Env(), MemoryFile() as memory:
            with memory.open(
                driver="GTiff", width=1, height=1, count=1, dtype="uint8",
                crs=reference.crs, transform=rasterio.Affine(*reference.transform),
            ):  # fmt: skip
                pass
            memory.seek(0)
            with tifffile.TiffFile(memory) as tiff:
                tags = tiff.pages.first.tags
                found = [tags[code] for code in _GEO_TAGS if code in tags]
                return [(t.code, int(t.dtype), int(t.count), t.value, True) for t in found]
    except (CRSError, RasterioError) as error:
        raise InputError(
            f"The coordinate reference system {reference.crs!r} cannot be written to a GeoTIFF ({error});"
            " give the image one that GDAL knows, or export as ome-tiff."
        ) from error


def _density(store: LabelStore) -> dict[str, Any]:
    """Pixels a centimetre, of an image that lies nowhere on the earth, a slide."""
    size = store.pixel_size
    metres = metres_of(size.unit) if size is not None and store.georeference is None else None
    if size is None or metres is None:
        return {}
    return {"resolution": (0.01 / (size.column * metres), 0.01 / (size.row * metres)), "resolutionunit": "CENTIMETER"}


def _gdal_tags(store: LabelStore) -> list[tuple[int, int, int, Any, bool]]:
    # GDAL unescapes an item once more after parsing the XML, so names are escaped twice.
    items = "".join(
        f'<Item name="CLASS_{k}">{escape(escape(c.name))}</Item><Item name="COLOR_{k}">{c.hex}</Item>'
        for k, c in enumerate(store.classes)
    )
    if store.kind != "labels":
        names = [c.name for c in store.classes] if store.channels > 1 else [store.kind]
        for band, name in enumerate(names):
            facts = {"scale": repr(1 / QUANTA), "offset": "0", "description": escape(escape(name))}
            items += "".join(
                f'<Item name="{role.upper()}" sample="{band}" role="{role}">{value}</Item>'
                for role, value in facts.items()
            )
    items += f'<Item name="ORIGIN">{store.origin[0]},{store.origin[1]}</Item>'
    metadata = f"<GDALMetadata>{items}</GDALMetadata>".encode()
    return [(42112, 2, 0, metadata, True), (42113, 2, 0, str(IGNORE_INDEX), True)]


def _category_names(store: LabelStore) -> bytes:
    names = "".join(f"<Category>{escape(c.name)}</Category>" for c in store.classes)
    band = f'<PAMRasterBand band="1"><CategoryNames>{names}</CategoryNames></PAMRasterBand>'
    return f"<PAMDataset>{band}</PAMDataset>\n".encode()


def _to_cog(plain: Path, path: Path) -> None:
    import rasterio
    import rasterio.shutil

    # The overviews are there already (our mode, not GDAL's, which breaks ties otherwise): only copied.
    options = {"OVERVIEWS": "FORCE_USE_EXISTING", "COMPRESS": "DEFLATE", "BLOCKSIZE": "512"}
    with rasterio.Env(GDAL_CACHEMAX=128, GDAL_NUM_THREADS="2"):
        try:
            rasterio.shutil.copy(str(plain), str(path), driver="COG", BIGTIFF="IF_SAFER", **options)
            _check_whole(path, plain)
        except Exception as error:  # GDAL's own errors, which rasterio lets through, have no class that is public
            raise InputError(
                f"GDAL could not write {path.name} ({one_line(error)}); check the free space and run the same command"
                " again."
            ) from error


def _check_whole(path: Path, plain: Path) -> None:
    """``ValueError`` unless a COG has every tile of every level of ``plain``: of a full disk GDAL may say nothing.

    In a COG the size of a tile stands before it, and its last four bytes once more behind it.
    """
    import tifffile

    with quiet_tifffile(), tifffile.TiffFile(plain) as tiff:
        levels = _sizes(tiff)
    with quiet_tifffile(), tifffile.TiffFile(path) as tiff, path.open("rb") as file:
        if _sizes(tiff) != levels:
            raise ValueError("its levels are not all there")
        for page in tiff.pages:
            for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
                file.seek(offset - 4)
                before = file.read(4)
                file.seek(offset + size - 4)
                last, behind = file.read(4), file.read(4)
                if size == 0 or before != size.to_bytes(4, "little") or last != behind:
                    raise ValueError(f"the tile at byte {offset} is not whole")


def _sizes(tiff: Any) -> list[tuple[int, int]]:
    return [(page.imagelength, page.imagewidth) for page in tiff.pages]
