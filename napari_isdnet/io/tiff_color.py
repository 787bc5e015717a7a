"""What the samples of a TIFF mean (TIFF 6.0, PhotometricInterpretation), and how they become grey or RGB.

Colours that a JPEG codec has turned into RGB by itself, plain grey, RGB and palettes need nothing from here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_isdnet.exceptions import InputError

if TYPE_CHECKING:
    import numpy.typing as npt

Color = Callable[["npt.NDArray[Any]"], "npt.NDArray[Any]"]
"""From the samples of a tile as they are stored ``(rows, columns, samples)`` to those that are given out."""
JPEG = (6, 7, 34892, 33007)
"""Compressions whose codec turns YCbCr into RGB."""
_WHITE_IS_ZERO, _SEPARATED, _YCBCR = 0, 5, 6
_REFUSED = {8: "CIELab", 9: "ICC Lab", 10: "ITU Lab", 32844: "LogL", 32845: "LogLuv"}
_INK_SET, _COEFFICIENTS, _REFERENCE = 332, 529, 532
_KEEPS_SAMPLES = (1, 5, 8, 32773, 32946, 34925, 50000)
"""Lossless compressions that give back the samples as they were: none, LZW, deflate, PackBits, LZMA, Zstandard."""
_LEFT_TO_OTHERS = (33003, 33005)
"""Aperio's JPEG 2000, which another reader takes over."""
_LUMA = (0.299, 0.587, 0.114)
_FULL_RANGE = (0.0, 255.0, 128.0, 255.0, 128.0, 255.0)


def with_alpha(colors: npt.NDArray[np.uint8], nodata: float | None) -> npt.NDArray[np.uint8]:
    """A colour map (entries, 3) with alpha as a fourth column where ``nodata`` is one of its indices.

    Its colour would not do as nodata: other indices may have it too.
    """
    if nodata is None or not (float(nodata).is_integer() and 0 <= nodata < len(colors)):
        return colors
    alpha = np.full((len(colors), 1), 255, np.uint8)
    alpha[int(nodata)] = 0
    return np.concatenate([colors, alpha], axis=1)


def color_of(key: Any, name: str, notes: list[str]) -> Color | None:
    """How the samples of a page are converted, None where they are not; :class:`InputError` where nobody knows how."""
    if key.photometric == _WHITE_IS_ZERO:
        return _inversion(key, notes)
    if key.photometric in _REFUSED:
        raise _refused(name, f"{_REFUSED[key.photometric]} colours")
    if key.photometric == _SEPARATED:
        return _cmyk(key, name, notes)
    return _ycbcr(key, name, notes) if key.photometric == _YCBCR else None


def samples_out(key: Any, color: Color | None) -> int:
    """Samples per pixel after the conversion: CMYK loses one."""
    return int(key.samplesperpixel) - (color is not None and key.photometric == _SEPARATED)


def alpha_samples(key: Any) -> list[int]:
    """Which of the stored samples are alpha."""
    extra = tuple(key.extrasamples or ())
    return [int(key.samplesperpixel) - len(extra) + i for i, kind in enumerate(extra) if kind in (1, 2)]


def inverts(key: Any, color: Color | None) -> bool:
    """True where the conversion only turns the grey scale round, so that a stored value still has its counterpart."""
    return color is not None and key.photometric == _WHITE_IS_ZERO


def inverted_value(value: float, key: Any) -> float:
    """Counterpart of one grey value; the way back is the same."""
    return _top(key) - value


def invert(samples: npt.NDArray[Any], top: int, alpha: tuple[int, ...] = ()) -> npt.NDArray[Any]:
    """White is 0 and becomes ``top``; alpha stays as it is."""
    result: npt.NDArray[Any] = samples.dtype.type(top) - samples
    for channel in alpha:
        result[..., channel] = samples[..., channel]
    return result


def cmyk_to_rgb(samples: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``(1 - ink) * (1 - black)`` rounded, as the codec does for CMYK JPEGs; further samples follow unchanged."""
    top = int(np.iinfo(samples.dtype).max)
    light = top - samples[..., :4].astype(np.uint32)  # 65535 squared, and half of it for rounding, fits 32 bits
    rgb = (light[..., :3] * light[..., 3:] + top // 2) // top
    return np.concatenate([rgb.astype(samples.dtype), samples[..., 4:]], axis=-1)


def ycbcr_to_rgb(
    samples: npt.NDArray[Any], luma: tuple[float, ...] = _LUMA, reference: tuple[float, ...] = _FULL_RANGE
) -> npt.NDArray[Any]:
    """TIFF 6.0, section 21: luma coefficients, and the codes of black and white for each component."""
    black, white = np.array(reference[::2], np.float32), np.array(reference[1::2], np.float32)
    y, blue, red = np.moveaxis((samples - black) * (np.array((255, 127, 127), np.float32) / (white - black)), -1, 0)
    r, b = y + red * (2 - 2 * luma[0]), y + blue * (2 - 2 * luma[2])
    g = (y - luma[0] * r - luma[2] * b) / luma[1]
    return np.clip(np.rint(np.stack([r, g, b], axis=-1)), 0, 255).astype(samples.dtype)


def _top(key: Any) -> int:
    return 255 if key.dtype == bool else (1 << int(key.bitspersample)) - 1  # single bits are read as 0 and 255


def _inversion(key: Any, notes: list[str]) -> Color | None:
    if key.dtype.kind not in "bu":
        _say(notes, f"0 is said to be white, which has no meaning for {key.dtype} samples: they are used as they are")
        return None
    _say(notes, "0 is white in this file: its values were inverted")
    # A planar page has its alpha in a plane of its own, which the caller leaves alone.
    alpha = () if key.planarconfig == 2 else tuple(alpha_samples(key))
    return partial(invert, top=_top(key), alpha=alpha)


def _cmyk(key: Any, name: str, notes: list[str]) -> Color:
    if key.samplesperpixel < 4 or key.tags.valueof(_INK_SET, 1) != 1:
        raise _refused(name, f"{key.samplesperpixel} inks that are not CMYK")
    _check_samples(key, name, "CMYK", (np.uint8, np.uint16))
    _say(notes, "CMYK was converted to RGB without its colour profile")
    return cmyk_to_rgb


def _ycbcr(key: Any, name: str, notes: list[str]) -> Color | None:
    codec = int(key.compression)
    if codec in JPEG and key.planarconfig != 2:
        return None
    if codec in _LEFT_TO_OTHERS or (key.is_subsampled and codec not in JPEG):
        return None  # found out when the decoders are made
    if codec not in (*_KEEPS_SAMPLES, *JPEG) or key.samplesperpixel != 3:
        raise _refused(name, f"{key.samplesperpixel} samples of YCbCr colours compressed with {key.compression!s}")
    _check_samples(key, name, "YCbCr", (np.uint8,))
    _say(notes, "YCbCr was converted to RGB")
    luma = _rationals(key, _COEFFICIENTS, 3) or _LUMA
    reference = _rationals(key, _REFERENCE, 6) or _FULL_RANGE
    if min(luma) <= 0 or any(low == high for low, high in zip(reference[::2], reference[1::2])):
        raise _refused(name, "YCbCr colours with unusable coefficients")
    return partial(ycbcr_to_rgb, luma=luma, reference=reference)


def _check_samples(key: Any, name: str, what: str, allowed: tuple[type, ...]) -> None:
    if key.planarconfig == 2:
        raise _refused(name, f"{what} colours in separate planes")
    if key.dtype not in allowed or key.bitspersample != key.dtype.itemsize * 8:
        raise _refused(name, f"{what} colours as {key.bitspersample}-bit {key.dtype} samples")


def _refused(name: str, what: str) -> InputError:
    return InputError(
        f"{name} stores {what}; grey, RGB, palette, 8- and 16-bit CMYK and 8-bit YCbCr are allowed: "
        "convert the file to RGB first."
    )


def _rationals(key: Any, code: int, count: int) -> tuple[float, ...] | None:
    values = key.tags.valueof(code)
    if not isinstance(values, tuple) or len(values) != 2 * count or not all(values[1::2]):
        return None
    return tuple(float(a) / float(b) for a, b in zip(values[::2], values[1::2]))


def _say(notes: list[str], text: str) -> None:
    """Once: a file has a page for every channel."""
    if text not in notes:
        notes.append(text)
