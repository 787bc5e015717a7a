"""What GDAL and QGIS keep beside an image: coarse levels of a TIFF in ``.ovr``, a validity mask in ``.msk``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.base import SourceBase
from napari_isdnet.io.source import read_channels
from napari_isdnet.io.tiff import TiffSource, open_tiff
from napari_isdnet.window import Window

if TYPE_CHECKING:
    import numpy.typing as npt

    Place = tuple[TiffSource, int]


class CompanionSource(SourceBase):
    """A TIFF with levels of another file, and with the mask of a third as its last channel, alpha.

    ``levels[n]`` and ``masks[n]`` say which file holds level ``n`` and as which of its own; ``masks`` may be empty.
    """

    def __init__(
        self, image: TiffSource, levels: Sequence[Place], masks: Sequence[Place], notes: Sequence[str]
    ) -> None:
        shapes = tuple(source.levels[level] for source, level in levels)
        info = replace(image.info, levels=shapes, notes=(*image.notes, *notes))
        if masks:
            info = replace(info, channels=image.channels + 1, alpha=image.channels)
        super().__init__(info)
        self._image, self._places, self._masks = image, tuple(levels), tuple(masks)

    def indices(self) -> CompanionSource:
        """The file read as it is stored, for label maps; one with a mask is no label map and stays what it is."""
        stored = {id(source): source.indices() for source, _ in self._places}
        image = stored[id(self._image)]
        if self._masks or image is self._image:
            return self
        notes = self.notes[len(self._image.notes) :]  # those of the image may be of its colours
        return CompanionSource(image, [(stored[id(source)], n) for source, n in self._places], (), notes)

    def _read(self, window: Window, level: int) -> npt.NDArray[Any]:
        return self._read_channels(window, level, range(self.channels))

    def _read_channels(self, window: Window, level: int, channels: Sequence[int]) -> npt.NDArray[Any]:
        source, own = self._places[level]
        pixels = read_channels(source, window, [c for c in channels if c < source.channels], own)
        if self.alpha is None or not self._masks or self.alpha not in channels:
            return pixels
        mask, own = self._masks[level]
        alpha = np.where(mask.read(window, own) != 0, 255, 0).astype(self.dtype)
        return np.insert(pixels, list(channels).index(self.alpha), alpha[..., 0], axis=2)

    def identity(self) -> dict[str, Any]:
        """That of the image, and of its mask, on which a result depends too."""
        own = self._image.identity()
        return {**own, "mask": self._masks[0][0].identity()} if self._masks else own

    def written_meanwhile(self) -> bool:
        """Whether the image is no longer the file that was opened."""
        return self._image.written_meanwhile()

    def _release(self) -> None:
        for source, _ in (*self._places, *self._masks):
            source.close()


def with_companions(image: TiffSource) -> TiffSource | CompanionSource:
    """``image`` with the ``.ovr`` and ``.msk`` files beside it, as far as it has no levels and no alpha of its own.

    One that is damaged, or does not fit the image, is left out with a note.
    """
    notes: list[str] = []
    levels = [(image, n) for n in range(len(image.levels))]
    if len(levels) == 1:
        levels += _coarse(image, notes)
    masks = [] if image.alpha is not None or image.dtype == np.int8 else _masks(image, notes)
    if masks:
        # A level without its mask would show what the mask hides.
        common = _common([s.levels[n] for s, n in levels], [s.levels[n] for s, n in masks])
        for source in {source for source, _ in levels[common:]} - {source for source, _ in levels[:common]}:
            source.close()
        levels = levels[:common]
    if len(levels) == len(image.levels) and not masks:
        image.info = replace(image.info, notes=(*image.notes, *notes))
        return image
    return CompanionSource(image, levels, masks, notes)


def mask_of_picture(path: Path, shape: tuple[int, int], notes: list[str]) -> npt.NDArray[np.bool_] | None:
    """``IMAGE.msk`` of a picture of ``shape``, as it is stored: True where a pixel is valid. None where there is none.

    One that is damaged, or does not fit, is left out with a note.
    """
    found = _mask(path, shape, None, notes)
    if found is None:
        return None
    with closing(found):
        try:
            mask = found.read(Window.whole(shape))[..., 0] != 0
        except InputError:
            notes.append(f"{found.path.name} cannot be read and is ignored")
            return None
    notes.append(f"{found.path.name} says which pixels are valid")
    return mask


def _coarse(image: TiffSource, notes: list[str]) -> list[Place]:
    """The levels of ``IMAGE.ovr``, the convention of GDAL."""
    other = _beside(image.path, ".ovr", image.threads, notes)
    if other is None:
        return []
    alike = other.channels == image.channels and other.dtype == image.dtype and other.alpha == image.alpha
    if not alike or not all(_halves(image.shape, shape) for shape in other.levels):
        other.close()
        notes.append(f"{other.path.name} does not fit the image and is ignored")
        return []
    notes.append(f"its coarse levels come from {other.path.name}")
    return [(other, n) for n in range(len(other.levels))]


def _masks(image: TiffSource, notes: list[str]) -> list[Place]:
    """The levels of ``IMAGE.msk`` and of its own ``.ovr``: 0 hides a pixel."""
    mask = _mask(image.path, image.shape, image.threads, notes)
    if mask is None:
        return []
    notes.append(f"{mask.path.name} says which pixels are valid")
    return [*((mask, n) for n in range(len(mask.levels))), *(_coarse(mask, []) if len(mask.levels) == 1 else [])]


def _mask(image: Path, shape: tuple[int, int], threads: int | None, notes: list[str]) -> TiffSource | None:
    mask = _beside(image, ".msk", threads, notes)
    if mask is None or (mask.shape == shape and mask.channels == 1):
        return mask
    mask.close()
    notes.append(f"{mask.path.name} does not fit the image and is ignored")
    return None


def _beside(image: Path, suffix: str, threads: int | None, notes: list[str]) -> TiffSource | None:
    path = image.with_name(image.name + suffix)
    if not path.is_file():
        return None
    try:
        return open_tiff(path, path.name, threads)
    except InputError:
        notes.append(f"{path.name} cannot be read and is ignored")
        return None


def _halves(whole: tuple[int, int], coarse: tuple[int, int]) -> bool:
    """Whether ``coarse`` is ``whole`` divided by one number of at least 1.5, whichever way it was rounded."""
    factor = max(whole) / max(coarse)
    return factor >= 1.5 and all(abs(side - small * factor) <= 2 * factor for side, small in zip(whole, coarse))


def _common(one: Sequence[tuple[int, int]], other: Sequence[tuple[int, int]]) -> int:
    """How many first levels are of equal shapes."""
    same = [a == b for a, b in zip(one, other)]
    return same.index(False) if False in same else len(same)
