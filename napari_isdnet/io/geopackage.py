"""Class polygons as a GeoPackage, by pyogrio: for ArcGIS, and for QGIS, which finds the class colours in it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

from napari_isdnet.classes import ClassInfo
from napari_isdnet.exceptions import InputError, MissingExtra
from napari_isdnet.io.geojson import to_map
from napari_isdnet.io.source import GeoReference

if TYPE_CHECKING:
    from shapely import Polygon

LAYER = "classes"
_AT_ONCE = 2000
"""Polygons that are written with one transaction."""


def check_geopackage() -> None:
    """:class:`InputError` where a GeoPackage cannot be written, which a long job can say before it starts."""
    if find_spec("pyogrio") is None:
        raise MissingExtra("Writing a GeoPackage", "pyogrio", "geo")


class GeoPackage:
    """Writes polygons feature by feature, as :class:`~napari_isdnet.io.geojson.Writer` does.

    Attributes: ``class`` (name), ``class_index``, ``area_pixels``. Raises :class:`InputError` where pyogrio is missing
    or the file cannot be written.
    """

    def __init__(self, path: Path, classes: Sequence[ClassInfo], reference: GeoReference | None) -> None:
        check_geopackage()
        import pyogrio

        self._write = pyogrio.raw.write
        self._path = path
        self._classes = classes
        self._reference = reference
        self._waiting: list[tuple[Any, int, float]] = []
        self._begun = False

    def add(self, index: int, polygon: Polygon, local: Polygon) -> None:
        """Class ``index``; ``polygon`` in image pixels, ``local`` in the pixels that the georeference counts."""
        shape = polygon if self._reference is None else to_map(local, self._reference)
        self._waiting.append((shape, index, polygon.area))
        if len(self._waiting) == _AT_ONCE:
            self._flush()

    def close(self) -> None:
        """Write what waits, and how QGIS is to draw it."""
        import numpy as np

        self._flush()
        self._append(
            "layer_styles",
            None,
            {
                "f_table_catalog": [""],
                "f_table_schema": [""],
                "f_table_name": [LAYER],
                "f_geometry_column": ["geom"],
                "styleName": [LAYER],
                "styleQML": [style(self._classes)],
                "styleSLD": [""],
                "useAsDefault": [True],
                "description": ["Colours of the classes"],
                "owner": [""],
                "update_time": [np.datetime64("now", "ms")],  # QGIS takes the latest
            },
        )

    def _flush(self) -> None:
        import shapely

        if not self._waiting and self._begun:
            return
        shapes, indices, areas = zip(*self._waiting) if self._waiting else ((), (), ())
        names = [self._classes[index].name for index in indices]
        columns = {"class": names, "class_index": list(indices), "area_pixels": list(areas)}
        self._append(LAYER, shapely.to_wkb(list(shapes)), columns)
        self._waiting, self._begun = [], True

    def _append(self, layer: str, shapes: Any, columns: dict[str, list[Any]]) -> None:
        import numpy as np

        kinds: dict[str, Any] = {
            "class_index": np.int32,
            "area_pixels": np.float64,
            "useAsDefault": np.bool_,
            "update_time": "datetime64[ms]",
        }
        crs = None if self._reference is None else self._reference.crs
        try:
            with warnings.catch_warnings():  # a file that counts the pixels of an image names no system
                warnings.filterwarnings("ignore", "'crs' was not provided", UserWarning)
                self._write(
                    self._path,
                    geometry=shapes,
                    field_data=[np.array(values, kinds.get(name, object)) for name, values in columns.items()],
                    fields=list(columns),
                    layer=layer,
                    driver="GPKG",
                    geometry_type=None if shapes is None else "Polygon",
                    crs=None if shapes is None else crs,
                    append=self._path.exists(),
                    dataset_options={"VERSION": "1.2"},  # GDAL's newest one is news to programs a few years old
                )
        except Exception as error:  # GDAL's own, of many classes
            raise InputError(f"{self._path.name} cannot be written ({str(error).split(';')[0]}).") from error


def style(classes: Sequence[ClassInfo]) -> str:
    """A QGIS style (QML) that fills the polygons of every class with its colour."""
    categories, symbols = [], []
    for number, info in enumerate(classes):
        name, color = quoteattr(info.name), ",".join(map(str, (*info.color, 255)))
        categories.append(f'<category render="true" symbol="{number}" value={name} label={name}/>')
        symbols.append(
            f'<symbol type="fill" name="{number}" alpha="1"><layer class="SimpleFill" enabled="1">'
            f'<prop k="color" v="{color}"/><prop k="style" v="solid"/><prop k="outline_style" v="no"/>'
            f'<Option type="Map"><Option name="color" type="QString" value="{color}"/>'
            '<Option name="style" type="QString" value="solid"/>'
            '<Option name="outline_style" type="QString" value="no"/></Option></layer></symbol>'
        )
    return (
        '<!DOCTYPE qgis PUBLIC "http://mrcc.com/qgis.dtd" "SYSTEM">\n<qgis styleCategories="Symbology">'
        f'<renderer-v2 type="categorizedSymbol" attr="class"><categories>{"".join(categories)}</categories>'
        f"<symbols>{''.join(symbols)}</symbols></renderer-v2></qgis>\n"
    )
