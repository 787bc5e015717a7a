"""PNG, JPEG and JPEG 2000: formats that are decoded whole, so their size is read from the header first."""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.base import SourceBase, SourceInfo, file_identity, one_line
from napari_isdnet.io.tiff_color import cmyk_to_rgb
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
_EXIF, _ORIENTATION = b"Exif\0\0", 0x112
_ROWS_AT_ONCE = 256


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


def orientation(data: bytes, kind: str) -> int:
    """EXIF orientation of a PNG or JPEG, 1 (as stored) where it states none that is known."""
    try:
        found = _ifd_orientation(_jpeg_exif(data) if kind == "JPEG" else _png_exif(data) if kind == "PNG" else b"")
    except (struct.error, IndexError):
        return 1
    return found if 1 <= found <= 8 else 1


def _jpeg_exif(data: bytes) -> bytes:
    at = 2
    while data[at] == 0xFF and data[at + 1] != 0xDA:
        marker = data[at + 1]
        if marker == 0xFF or 0xD0 <= marker <= 0xD8 or marker == 0x01:
            at += 1 if marker == 0xFF else 2
            continue
        size = struct.unpack(">H", data[at + 2 : at + 4])[0]
        if marker == 0xE1 and data.startswith(_EXIF, at + 4):
            return data[at + 4 + len(_EXIF) : at + 2 + size]
        at += 2 + size
    return b""


def _png_exif(data: bytes) -> bytes:
    at = len(PNG)
    while at + 8 <= len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        if name == b"eXIf":
            return data[at + 8 : at + 8 + size]
        at += 12 + size
    return b""


def _ifd_orientation(exif: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    at = struct.unpack_from(f"{order}I", exif, 4)[0]
    for i in range(struct.unpack_from(f"{order}H", exif, at)[0]):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, at + 2 + 12 * i)
        if tag == _ORIENTATION:
            return int(value) if kind == 3 else 1
    return 1


def turned(image: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """A view of ``image (h, w, c)`` as viewers show it (EXIF 2.3, tag 274)."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image[:, ::-1] if orientation in (2, 3, 6, 7) else image


def _rgb_of_cmyk(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """RGB of the inverted inks that CMYK JPEGs hold (Adobe's convention, which all readers assume)."""
    result = np.empty((*image.shape[:2], 3), image.dtype)
    for top in range(0, len(image), _ROWS_AT_ONCE):  # the sums are four times as wide as the samples
        rows = slice(top, top + _ROWS_AT_ONCE)
        result[rows] = cmyk_to_rgb(np.iinfo(image.dtype).max - image[rows])
    return result


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
    """A picture held in memory as one array, and where there is one the mask beside it, its last channel, alpha."""

    def __init__(
        self, path: Path, data: npt.NDArray[Any], info: SourceInfo, mask: npt.NDArray[np.bool_] | None = None
    ) -> None:
        super().__init__(info if mask is None else replace(info, channels=info.channels + 1, alpha=info.channels))
        self._path, self._data, self._mask = path, data, mask
        self._identity = file_identity(path)
        if mask is not None:  # on which a result depends, too
            self._identity["mask"] = file_identity(path.with_name(f"{path.name}.msk"))

    def bare(self) -> PictureSource:
        """The picture without its mask, for label maps."""
        if self._mask is None:
            return self
        return PictureSource(self._path, self._data, replace(self.info, channels=self.channels - 1, alpha=None))

    def _read(self, window: Window, level: int) -> npt.NDArray[Any]:  # noqa: ARG002
        pixels = self._data[window.slices]
        if self._mask is None:
            return pixels.copy()
        alpha = np.where(self._mask[window.slices], 255, 0).astype(self.dtype)
        return np.concatenate([pixels, alpha[..., None]], axis=2)

    @property
    def resident_bytes(self) -> int:
        """Bytes of the decoded pixels."""
        return self._data.nbytes + (0 if self._mask is None else self._mask.nbytes)

    def identity(self) -> dict[str, Any]:
        """Path, size and modification time when it was opened, also of its mask."""
        return {"format": self.format, **self._identity}

    def _release(self) -> None:
        self._data, self._mask = np.empty((0, 0, 1), self.dtype), None


def open_picture(path: Path, name: str, memory: int | None = None) -> PictureSource:
    """Open a PNG, JPEG or JPEG 2000 that decodes to at most ``memory`` bytes (4 GiB unless told).

    A photograph is turned as its EXIF orientation says, so that it lies as every viewer shows it. A validity mask in
    ``.msk`` beside it, as GDAL writes it, becomes its alpha where it has none.
    """
    from napari_isdnet.io.companions import mask_of_picture

    bound = MEMORY_BOUND if memory is None else memory
    if path.stat().st_size > bound:
        raise InputError(
            f"{path.name} is larger than the {bound >> 20} MiB that a picture may take; save it as a tiled TIFF."
        )
    data = path.read_bytes()
    kind = kind_of(data[:16]) or "picture"
    image = _decoded(data, kind, path.name, bound)
    notes: list[str] = []
    rows, columns, channels = image.shape
    if kind == "JPEG" and image.shape[2] == 4:
        image = _rgb_of_cmyk(image)
        notes.append("CMYK was converted to RGB without its colour profile")
    alpha = channels - 1 if (kind == "PNG" and channels in (2, 4)) or (kind == "JPEG 2000" and channels == 4) else None
    mask = None if alpha is not None else mask_of_picture(path, (rows, columns), notes)
    turn = orientation(data, kind)
    if turn != 1:
        image = turned(image, turn)
        mask = None if mask is None else turned(mask[..., None], turn)[..., 0]
        notes.append(f"it was turned upright as its EXIF orientation {turn} says")
    info = SourceInfo(name, (image.shape[:2],), image.shape[2], image.dtype, kind, alpha=alpha, notes=tuple(notes))
    return PictureSource(path, image, info, mask)


def _decoded(data: bytes, kind: str, name: str, bound: int) -> npt.NDArray[Any]:
    """The pixels as (rows, columns, channels), once the header has said that they fit ``bound`` bytes."""
    import imagecodecs

    try:
        rows, columns, pixel = header_size(data, kind)
        if rows < 1 or columns < 1:
            raise ValueError(f"its header states {rows} x {columns} pixels")
    except ValueError as error:
        raise InputError(f"{name} is a damaged {kind} ({one_line(error)}); copy or export it again.") from error
    if rows * columns * pixel > bound:
        raise InputError(
            f"{name} is a {kind} of {rows} x {columns} pixels, which must be decoded whole and would take "
            f"{rows * columns * pixel / 2**30:.1f} GiB where {bound / 2**30:.1f} are allowed; allow more memory, or "
            "save it as a tiled TIFF."
        )
    decode = {"PNG": imagecodecs.png_decode, "JPEG": imagecodecs.jpeg_decode}.get(kind, imagecodecs.jpeg2k_decode)
    try:
        if kind == "JPEG":
            _check_jpeg_ends(data)
        image = np.asarray(decode(data))
        if image.shape[:2] != (rows, columns) or image.ndim not in (2, 3):
            raise ValueError(f"decoded to {image.shape}, the header states {rows} x {columns}")
    except Exception as error:  # codecs raise types of their own
        raise InputError(f"{name} is a damaged {kind} ({one_line(error)}); copy or export it again.") from error
    return image.reshape(rows, columns, -1)
