"""PNG, JPEG and JPEG 2000: formats that are decoded whole, so their size is read from the header first."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.base import SourceBase, SourceInfo, file_identity, one_line
from napari_isdnet.window import Window

if TYPE_CHECKING:
    import numpy.typing as npt

MEMORY_BOUND = 4 << 30
"""Bytes that a picture may decode to unless the caller says otherwise."""
PNG, JPEG, JP2, J2K = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"
_JPEG_SIZE_MARKERS = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_JPEG_NEXT_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
"""What ends the coded data of a scan: neither a stuffed byte nor a restart marker."""
_PNG_SAMPLES = {0: 1, 2: 3, 3: 4, 4: 2, 6: 4}
"""Samples per pixel by PNG colour type; a palette may become RGBA."""


def kind_of(head: bytes) -> str | None:
    """'PNG', 'JPEG' or 'JPEG 2000' by the first bytes of a file, else None."""
    for magic, kind in ((PNG, "PNG"), (JP2, "JPEG 2000"), (J2K, "JPEG 2000"), (JPEG, "JPEG")):
        if head.startswith(magic):
            return kind
    return None


def header_size(data: bytes, kind: str) -> tuple[int, int, int]:
    """(rows, columns, bytes per pixel at most) as the header states them; ``ValueError`` if it states none."""
    try:
        if kind == "PNG":
            if data[12:16] != b"IHDR":
                raise ValueError("no IHDR chunk")
            columns, rows, depth, color = struct.unpack(">IIBB", data[16:26])
            return rows, columns, _PNG_SAMPLES.get(color, 4) * max(1, depth // 8)
        return _jpeg2000_size(data) if kind == "JPEG 2000" else _jpeg_size(data)
    except (struct.error, IndexError):
        raise ValueError("the header is cut off") from None


def _jpeg_size(data: bytes) -> tuple[int, int, int]:
    at = 2
    while True:
        if data[at] != 0xFF:
            raise ValueError("no size marker")
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in _JPEG_SIZE_MARKERS:
            depth, rows, columns, samples = struct.unpack(">BHHB", data[at + 4 : at + 10])
            return rows, columns, max(samples, 3) * (1 if depth <= 8 else 2)
        if marker == 0xDA:
            raise ValueError("no size before the data")
        if 0xD0 <= marker <= 0xD8 or marker == 0x01:
            at += 2
        else:
            at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]


def _check_jpeg_ends(data: bytes) -> None:
    """``ValueError`` where the end marker is missing: decoders fill what was cut off with grey and say nothing."""
    at = 2
    while True:
        if at + 1 >= len(data):
            raise ValueError("the file ends before the picture does")
        marker = data[at + 1]
        if marker == 0xD9:
            return
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        at += 2 if 0xD0 <= marker <= 0xD8 or marker == 0x01 else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            found = _JPEG_NEXT_MARKER.search(data, at)
            at = len(data) if found is None else found.start()


def _jpeg2000_size(data: bytes) -> tuple[int, int, int]:
    at = data.find(J2K)
    if at < 0:
        raise ValueError("no code stream")
    right, bottom, left, top, _, _, _, _, samples = struct.unpack(">8IH", data[at + 8 : at + 42])
    depth = max((data[at + 42 + 3 * i] & 0x7F) + 1 for i in range(samples))
    return bottom - top, right - left, max(samples, 1) * (1 if depth <= 8 else 2 if depth <= 16 else 4)


class PictureSource(SourceBase):
    """A picture held in memory as one array."""

    def __init__(self, path: Path, data: npt.NDArray[Any], info: SourceInfo) -> None:
        super().__init__(info)
        self._data = data
        self._identity = file_identity(path)

    def _read(self, window: Window, level: int) -> npt.NDArray[Any]:  # noqa: ARG002
        return self._data[window.slices].copy()

    def identity(self) -> dict[str, Any]:
        """Path, size and modification time when it was opened."""
        return {"format": self.format, **self._identity}

    def close(self) -> None:
        """Free the pixels."""
        super().close()
        self._data = np.empty((0, 0, 1), self.dtype)


def open_picture(path: Path, name: str, memory: int | None = None) -> PictureSource:
    """Open a PNG, JPEG or JPEG 2000 that decodes to at most ``memory`` bytes (4 GiB unless told)."""
    import imagecodecs

    bound = MEMORY_BOUND if memory is None else memory
    if path.stat().st_size > bound:
        raise InputError(
            f"{path.name} is larger than the {bound >> 20} MiB that a picture may take; save it as a tiled TIFF."
        )
    data = path.read_bytes()
    kind = kind_of(data[:16]) or "picture"
    try:
        rows, columns, pixel = header_size(data, kind)
        if rows < 1 or columns < 1:
            raise ValueError(f"its header states {rows} x {columns} pixels")
    except ValueError as error:
        raise InputError(f"{path.name} is a damaged {kind} ({one_line(error)}); copy or export it again.") from error
    if rows * columns * pixel > bound:
        raise InputError(
            f"{path.name} is a {kind} of {rows} x {columns} pixels, which must be decoded whole and would take "
            f"{rows * columns * pixel / 2**30:.1f} GiB where {bound / 2**30:.1f} are allowed; save it as a tiled TIFF."
        )
    decode = {"PNG": imagecodecs.png_decode, "JPEG": imagecodecs.jpeg_decode}.get(kind, imagecodecs.jpeg2k_decode)
    try:
        if kind == "JPEG":
            _check_jpeg_ends(data)
        image = np.asarray(decode(data))
        if image.shape[:2] != (rows, columns) or image.ndim not in (2, 3):
            raise ValueError(f"decoded to {image.shape}, the header states {rows} x {columns}")
    except Exception as error:  # codecs raise types of their own
        raise InputError(f"{path.name} is a damaged {kind} ({one_line(error)}); copy or export it again.") from error
    image = image.reshape(rows, columns, -1)
    channels = image.shape[2]
    alpha = channels - 1 if (kind == "PNG" and channels in (2, 4)) or (kind == "JPEG 2000" and channels == 4) else None
    info = SourceInfo(name, ((rows, columns),), channels, image.dtype, kind, alpha=alpha)
    return PictureSource(path, image, info)
