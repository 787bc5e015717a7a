"""Opening images and masks for training, with a bounded number of open files and one way to read class indices."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from napari_isdnet_training.config import DataConfig

from napari_isdnet.classes import IGNORE_INDEX, ClassInfo, index_of
from napari_isdnet.engine.annotated import AnnotationIndices
from napari_isdnet.engine.classlist import default_classes
from napari_isdnet.engine.labels import open_indices
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.source import SKIPPING, ImageSource, TileError
from napari_isdnet.window import Window

Labels = npt.NDArray[np.uint8]

# In a table of values: no class of this data set. 254 is no class index either way (255 classes would leave no 255).
NO_CLASS = 254
OPEN_FILES = 32
# Pictures (PNG, JPEG) are held decoded while they are open; this bounds how many bytes of them stay.
PICTURE_BYTES = 512 << 20


@dataclass(frozen=True)
class MaskCode:
    """How the pixels of a mask file say a class: by value (``values``: 256 class indices) or by colour.

    ``colors`` pairs a colour with its class index; a colour that is not listed is an error, and so is a value whose
    entry is :data:`NO_CLASS`. ``pure_colors``: each channel counts as 0 below 128 and as 255 from there on. Without
    either, values are class indices as they are, 255 ignored. ``names``: the recipe's classes, where a mask that names
    its own goes by them (:class:`NamedMask`).
    """

    values: tuple[int, ...] | None = None
    colors: tuple[tuple[tuple[int, int, int], int], ...] | None = None
    pure_colors: bool = False
    names: tuple[str, ...] = ()


def decode_mask(raw: npt.NDArray[Any], code: MaskCode, name: str, window: Window) -> Labels:
    """Class indices ``(H, W)`` uint8 of what a mask file holds, ``(H, W, channels)``."""
    if code.colors is not None:
        return _by_color(raw, code, name, window)
    if raw.shape[2] != 1:
        raise InputError(
            f"Mask {name} has {raw.shape[2]} channels; a mask has one channel of class indices (0, 1, 2, ..., 255 ="
            " ignored): save the indices, not a coloured picture."
        )
    if raw.dtype.kind not in "bui":
        raise InputError(
            f"Mask {name} holds {raw.dtype} numbers; a mask has class indices (0, 1, 2, ..., 255 = ignored): save it"
            " with whole numbers of 8 bits."
        )
    values = raw[..., 0]
    if values.dtype != np.uint8:
        _refuse_large(values, name, window)
        values = values.astype(np.uint8)
    if code.values is None:
        return values
    labels = np.asarray(code.values, np.uint8)[values]
    if NO_CLASS in code.values[:NO_CLASS]:
        _refuse_no_class(labels, values, code.values, name, window)
    return labels


def read_mask(mask: ImageSource, window: Window, code: MaskCode, name: str) -> Labels:
    """:func:`decode_mask` of a window of an open mask; what the file declares as nodata is ignored."""
    raw = mask.read(window)
    return raw[..., 0] if isinstance(mask, NamedMask) else _decoded(raw, mask.nodata, code, name, window)


def _decoded(raw: npt.NDArray[Any], nodata: float | None, code: MaskCode, name: str, window: Window) -> Labels:
    if nodata is None or code.colors is not None or raw.shape[2] != 1:
        return decode_mask(raw, code, name, window)
    hidden = raw[..., 0] == nodata
    # Some value that is allowed, since nodata itself may be none.
    allowed = IGNORE_INDEX if code.values is None else next(v for v, k in enumerate(code.values) if k != NO_CLASS)
    labels = decode_mask(np.where(hidden[..., None], np.array(allowed, np.int64), raw), code, name, window)
    labels[hidden] = IGNORE_INDEX
    return labels


def read_image(image: ImageSource, window: Window) -> npt.NDArray[Any]:
    """Pixels of a window; an error says nothing of what only segmenting can skip."""
    try:
        return image.read(window)
    except TileError as error:
        raise InputError(said_here(error)) from error


def policy_of(image: ImageSource, data: DataConfig) -> IntensityPolicy:
    """How samples of an image of a recipe's data become colours."""
    return IntensityPolicy.from_source(image, data.contrast, data.channels)


def chosen_colors(contrast: str, channels: Sequence[int] | None) -> dict[str, Any] | None:
    """What of this was chosen by hand, for a model's header: its next image should be read alike."""
    chosen: dict[str, Any] = {} if contrast == "auto" else {"asked": contrast}
    return (chosen if channels is None else chosen | {"channels": list(channels)}) or None


def colors_of(
    policy: IntensityPolicy, raw: npt.NDArray[Any], mean: Sequence[float]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_] | None]:
    """:meth:`IntensityPolicy.apply`, but what is no image (nodata, alpha 0) has the ``mean`` colour, as for 'segment'.

    Networks would learn that what lies beside black is a border, and be judged by another picture than they are shown.
    """
    pixels, valid = policy.apply(raw)
    if valid is not None:
        pixels[~valid] = mean
    return pixels, valid


def normalised(pixels: npt.NDArray[np.float32], mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(H, W, 3) float32 on the 0..255 scale as a network takes it: (3, H, W) float32."""
    scaled = (pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))


def said_here(error: InputError) -> str:
    """What an error says, without advice that is for ``napari-isdnet segment``."""
    return str(error).replace(SKIPPING, ".") if isinstance(error, TileError) else str(error)


def _refuse_no_class(labels: Labels, values: Labels, table: tuple[int, ...], name: str, window: Window) -> None:
    wrong = labels == NO_CLASS
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        allowed = [str(v) for v, index in enumerate(table) if index != NO_CLASS]
        raise InputError(
            f"Mask {name} holds {values[row, column]} at row {window.row + row}, column {window.column + column};"
            f" allowed in this data set are {', '.join(allowed)}."
        )


def _refuse_large(values: npt.NDArray[Any], name: str, window: Window) -> None:
    wrong = (values < 0) | (values > IGNORE_INDEX) if values.dtype.kind == "i" else values > IGNORE_INDEX
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise InputError(
            f"Mask {name} holds {values[row, column]} at row {window.row + row}, column {window.column + column};"
            " class indices are 0 to 254, and 255 is ignored."
        )


def _by_color(raw: npt.NDArray[Any], code: MaskCode, name: str, window: Window) -> Labels:
    if raw.shape[2] < 3 or raw.dtype != np.uint8:
        raise InputError(
            f"Mask {name} is of shape {raw.shape} and type {raw.dtype}; this layout's masks are RGB colours of 8 bits."
        )
    found = raw[..., :3]
    if code.pure_colors:
        found = np.where(found < 128, np.uint8(0), np.uint8(255))
    packed = (found[..., 0].astype(np.uint32) << 16) | (found[..., 1].astype(np.uint32) << 8) | found[..., 2]
    result = np.full(packed.shape, NO_CLASS, np.uint8)
    for (red, green, blue), index in code.colors or ():
        result[packed == (red << 16 | green << 8 | blue)] = index
    unknown = result == NO_CLASS
    if unknown.any():
        row, column = np.argwhere(unknown)[0]
        red, green, blue = (int(v) for v in raw[row, column, :3])
        raise InputError(
            f"Mask {name} has the colour #{red:02x}{green:02x}{blue:02x} at row {window.row + row}, column"
            f" {window.column + column}, which is no class of this data set; correct the mask."
        )
    return result


class NamedMask:
    """A source of the recipe's class indices, of a mask that names its classes: they may be in another order there.

    ``code`` is how its pixels say one of its own classes, ``order`` (256,) turns those into the recipe's.
    """

    channels = 1
    dtype: np.dtype[Any] = np.dtype(np.uint8)
    nodata: float | None = float(IGNORE_INDEX)
    alpha = None

    def __init__(self, stored: ImageSource, code: MaskCode, order: Labels, file: str) -> None:
        self.stored, self._code, self._order, self._file = stored, code, order, file
        self.name, self.shape, self.levels = stored.name, stored.shape, stored.levels
        self.pixel_size, self.georeference = stored.pixel_size, stored.georeference

    def read(self, window: Window, level: int = 0) -> Labels:
        """Class indices of ``window`` as (height, width, 1), 255 ignored; InputError for one that has no name."""
        own = _decoded(self.stored.read(window, level), self.stored.nodata, self._code, self._file, window)
        labels = self._order[own]
        if (labels == NO_CLASS).any():
            row, column = np.argwhere(labels == NO_CLASS)[0]
            raise InputError(
                f"Mask {self._file} holds class index {own[row, column]} at row {window.row + row}, column"
                f" {window.column + column}, and names fewer classes; correct the mask or its names."
            )
        return labels[..., None]

    def identity(self) -> Mapping[str, Any]:
        """That of the file, and in which order its classes are taken."""
        return {**self.stored.identity(), "order": self._order.tolist()}

    def close(self) -> None:
        """Close the file."""
        self.stored.close()


def open_mask(path: Path, code: MaskCode | None = None) -> ImageSource:
    """A mask as a source, read as everywhere else: as it is stored, a palette's indices and not its colours.

    With a ``code`` that has names, a mask that names its classes gives those of the recipe, and one that says that it
    is an annotation is read as such. Raises :class:`InputError` for a name that the recipe has not.
    """
    stored, own = open_indices(path, threads=1)  # as crops of images are read
    painted = isinstance(stored, AnnotationIndices)
    if own and own == default_classes(len(own)):
        own = None  # numbers in place of names say no more than the pixels
    if code is None or not code.names or not (own or painted):
        return stored
    try:
        order = _order(own, code.names, path.name)
    except InputError:
        stored.close()
        raise
    return NamedMask(stored, MaskCode() if painted else replace(code, names=()), order, path.name)


def _order(own: Sequence[ClassInfo] | None, names: Sequence[str], file: str) -> Labels:
    """(256,) class indices of a mask to those of the recipe, by name; as they are where the mask has no names."""
    if own is None:
        return np.arange(256, dtype=np.uint8)
    found = [index_of(info.name, names) for info in own]
    known = [index for index in found if index is not None]
    if len(set(known)) < len(own):
        raise InputError(
            f"Mask {file} has the classes {', '.join(c.name for c in own)}, the recipe {', '.join(names)}: name each of"
            " the mask's in data.classes, or save the mask with the recipe's names."
        )
    order = np.full(256, NO_CLASS, np.uint8)
    order[: len(known)], order[IGNORE_INDEX] = known, IGNORE_INDEX
    return order


class SourceCache:
    """Open sources by path, closed least recently used first; safe to use from several threads."""

    def __init__(self, opener: Callable[[Path], ImageSource]) -> None:
        self._opener = opener
        self._open: OrderedDict[Path, ImageSource] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[SourceCache], tuple[Callable[[Path], ImageSource]]]:
        return SourceCache, (self._opener,)  # a worker process opens its own

    def get(self, path: Path) -> ImageSource:
        """The open source of ``path``."""
        with self._lock:
            source = self._open.pop(path, None) or self._opener(path)
            self._open[path] = source
            while len(self._open) > 1 and (len(self._open) > OPEN_FILES or self._held() > PICTURE_BYTES):
                # Not closed by hand: another thread may be reading. Its last reference closes it.
                self._open.popitem(last=False)
            return source

    def _held(self) -> int:
        return sum(
            s.shape[0] * s.shape[1] * s.channels * s.dtype.itemsize
            for s in self._open.values()
            if getattr(s, "format", "") in ("PNG", "JPEG", "JPEG 2000")
            or isinstance(getattr(s, "stored", s), ArraySource)
        )
