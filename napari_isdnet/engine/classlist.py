"""Names and colours of classes that come with label maps: in a list beside them, or in a TIFF's own metadata."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

from napari_isdnet.classes import MAX_CLASSES, ClassInfo, classes_from
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.tiff_meta import tiff_texts

_ORIGIN = re.compile(r"(?:<M K=\"origin\">|<Item name=\"ORIGIN\">)(\d+),(\d+)<")
_OME_ITEM = re.compile(r'<M K="class\.(\d{1,3})\.(name|color)">([^<]*)</M>')
_GDAL_ITEM = re.compile(r'<Item name="(CLASS|COLOR)_(\d{1,3})">([^<]*)</Item>')


def read_classes(path: str | Path) -> tuple[ClassInfo, ...]:
    """Classes from a file: JSON (a list of names, pairs or objects, or ``{"classes": [...]}``) or one name per line.

    A line may end with a colour: ``road #ff8800``. Blank lines, and lines that start with ``#``, are skipped.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The list of classes {path} cannot be read ({error}).") from error
    if text.lstrip().startswith(("[", "{")):
        try:
            items = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"The list of classes {path} is not valid JSON ({error}).") from error
        items = items.get("classes", items) if isinstance(items, dict) else items
        if not isinstance(items, list):
            raise InputError(f'{path} must hold a JSON list of classes, or {{"classes": [...]}}.')
        return classes_from(items)
    lines = [line.strip() for line in text.splitlines()]
    return classes_from(_class_line(line) for line in lines if line and not line.startswith("#"))


def origin_in_tiff(path: Path) -> tuple[int, int] | None:
    """Row and column of the image where a result of this package begins; None where a file does not say so."""
    texts = tiff_texts(path)
    found = None if texts is None else _ORIGIN.search(texts.ome) or _ORIGIN.search(texts.gdal)
    return None if found is None else (int(found[1]), int(found[2]))


def _class_line(line: str) -> str | tuple[str, str]:
    name, _, color = line.rpartition(" ")
    is_color = len(color) == 7 and color.startswith("#")
    return (name.strip(), color) if is_color and name.strip() else line


def default_classes(count: int) -> tuple[ClassInfo, ...]:
    """Classes named by their index, for maps that come without names."""
    return classes_from(f"class {index}" for index in range(count))


def classes_in_tiff(path: Path) -> tuple[ClassInfo, ...] | None:
    """Classes that this package's OME-TIFF and GeoTIFF exports name; None where there are none, not all, or no TIFF."""
    texts = tiff_texts(path)
    if texts is None:
        return None
    known: dict[int, dict[str, str]] = {}
    for index, key, value in _OME_ITEM.findall(texts.ome):
        known.setdefault(int(index), {})[key] = unescape(value)
    if not known:
        for key, index, value in _GDAL_ITEM.findall(texts.gdal):
            # Escaped twice: GDAL unescapes an item once more after parsing the XML.
            known.setdefault(int(index), {})["name" if key == "CLASS" else "color"] = unescape(unescape(value))
    complete = sorted(known) == list(range(len(known))) and all("name" in item for item in known.values())
    if not known or not complete or len(known) > MAX_CLASSES:
        return None
    return classes_from(known[index] for index in sorted(known))
