"""A look at the bones of a TIFF before a parser believes it: page chain, sizes of tags, no entity tricks in XML.

TIFF 6.0 section 2, and the BigTIFF layout (magic 43). Hostile files loop their page chain or claim tags of gigabytes;
either would make any parser hang or fill the memory.
"""

from __future__ import annotations

import struct

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.files import PositionalFile

MAX_PAGES = 100_000
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_IMAGE_DESCRIPTION = 270
_NDPI_FILE_FORMAT = 65420
_DESCRIPTION_LIMIT = 256 << 20


def check_tiff(file: PositionalFile, name: str) -> int:
    """Number of pages in the main chain; :class:`InputError` for a file that no reader should be given."""
    try:
        return _walk(file, name)
    except (EOFError, struct.error):
        raise InputError(
            f"{name} is a damaged TIFF: it ends before its page directory; copy or export it again."
        ) from None


def _walk(file: PositionalFile, name: str) -> int:
    head = file.read(0, 16) if file.size >= 16 else file.read(0, 8) + bytes(8)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    magic = struct.unpack(f"{order}H", head[2:4])[0] if order else 0
    if order is None or magic not in (42, 43):
        raise InputError(f"{name} does not start like a TIFF; check that the file is what its name says.")
    big = magic == 43
    offset = struct.unpack(f"{order}Q", head[8:16])[0] if big else struct.unpack(f"{order}I", head[4:8])[0]
    seen: set[int] = set()
    while offset:
        if offset in seen or len(seen) >= MAX_PAGES:
            raise InputError(f"{name} is a damaged TIFF: its page directory loops or has over {MAX_PAGES} pages.")
        seen.add(offset)
        offset, ndpi = _check_page(file, name, order, big, offset)
        if ndpi:
            # Hamamatsu's classic TIFFs over 4 GiB keep 64-bit offsets in a place of their own: the parser knows.
            return len(seen)
    if not seen:
        raise InputError(f"{name} is a TIFF without any image; export it again.")
    return len(seen)


def _check_page(file: PositionalFile, name: str, order: str, big: bool, offset: int) -> tuple[int, bool]:
    """Check the tags of the page at ``offset``: (offset of the next page, whether it is an NDPI)."""
    head, entry = (8, 20) if big else (2, 12)
    count = struct.unpack(f"{order}{'Q' if big else 'H'}", file.read(offset, head))[0]
    if not 0 < count <= 4096:
        raise InputError(f"{name} is a damaged TIFF: a page claims {count} tags, 1 to 4096 are allowed.")
    tail = 8 if big else 4
    block = file.read(offset + head, count * entry + tail)
    ndpi = False
    for i in range(count):
        code, kind, items = struct.unpack_from(f"{order}HHQ" if big else f"{order}HHI", block, i * entry)
        size = _TYPE_BYTES.get(kind, 1) * items
        ndpi |= code == _NDPI_FILE_FORMAT
        if size > file.size:
            raise InputError(f"{name} is a damaged TIFF: tag {code} claims {size} bytes in a file of {file.size}.")
        if code == _IMAGE_DESCRIPTION and size > tail:
            where = struct.unpack_from(f"{order}{'Q' if big else 'I'}", block, i * entry + (12 if big else 8))[0]
            _check_description(file, name, where, size)
    return struct.unpack_from(f"{order}{'Q' if big else 'I'}", block, count * entry)[0], ndpi


def _check_description(file: PositionalFile, name: str, offset: int, size: int) -> None:
    if size > _DESCRIPTION_LIMIT:
        raise InputError(f"{name} has a description of {size} bytes; at most {_DESCRIPTION_LIMIT} are allowed.")
    if offset + size > file.size:
        return  # an NDPI's 64-bit offset, or damage that the parser reports
    text = file.read(offset, size).upper()
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise InputError(f"{name} defines XML entities in its description, which no image needs; remove them.")
