"""From the samples of a file to the red, green and blue on 0..255 that the network is trained with."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.source import ImageSource, TileError, read_channels, without_overviews
from napari_isdnet.window import Window

if TYPE_CHECKING:
    import numpy.typing as npt

Contrast = str | tuple[float, float]
LOW_PERCENTILE, HIGH_PERCENTILE = 0.5, 99.5
_WHOLE_LEVEL_PIXELS = 4 << 20
_LEAST_LEVEL_PIXELS = 1 << 16
_SAMPLE_WINDOWS, _SAMPLE_SIDE = 8, 128


@dataclass(frozen=True)
class IntensityPolicy:
    """How samples become RGB: which channels, which values become 0 and 255, and which pixels are no image at all.

    Every pixel is mapped by itself, so that a window's result is the crop of the whole image's. ``low`` and ``high``
    hold one value per chosen channel; ``contrast`` is what was asked for ('auto', 'none' or 'LOW,HIGH').
    """

    channels: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    contrast: str = "auto"
    nodata: float | None = None
    alpha: int | None = None

    def __post_init__(self) -> None:
        if len(self.channels) not in (1, 3) or not len(self.channels) == len(self.low) == len(self.high):
            raise InputError(f"An intensity policy needs 1 or 3 channels with a range each, got {len(self.channels)}.")
        if not all(math.isfinite(a) and math.isfinite(b) and a < b for a, b in zip(self.low, self.high)):
            raise InputError(
                f"Contrast limits must be two finite numbers, low below high, got {self.low} and {self.high}."
            )

    @classmethod
    def from_source(
        cls, source: ImageSource, contrast: Contrast = "auto", channels: Sequence[int] | None = None
    ) -> IntensityPolicy:
        """The policy for an image.

        ``contrast``: 'auto' (8-bit as it is; 16-bit, float and others by the 0.5 and 99.5 percentiles of each channel),
        'none' (the range of the integer type, or 0..1 for floats) or ``(low, high)``. ``channels``: one or three
        channel numbers; by default those that the file says are red, green and blue, else the first three, or the first
        one, that are not alpha. An alpha channel that is
        named is a colour and masks nothing: GDAL marks any fourth band of 8 bits so, near infrared too.

        Percentiles are those of the file's own levels, so that they do not depend on whether anybody has had overviews
        built to look at it.
        """
        chosen = _choose_channels(source, channels)
        if isinstance(contrast, str) and contrast not in ("auto", "none"):
            contrast = parse_contrast(contrast)
        named = channels is not None and source.alpha in chosen
        base: dict[str, Any] = {"channels": chosen, "nodata": source.nodata, "alpha": None if named else source.alpha}
        n = len(chosen)
        if not isinstance(contrast, str):
            low, high = (float(v) for v in contrast)
            return cls(low=(low,) * n, high=(high,) * n, contrast=f"{low:g},{high:g}", **base)
        low, high = full_range(source.dtype)
        plain = cls(low=(low,) * n, high=(high,) * n, contrast=contrast, **base)
        if contrast == "none" or source.dtype == np.uint8 or source.dtype == np.bool_:
            return plain
        lows, highs = _percentiles(source, plain)
        return cls(low=lows, high=highs, contrast=contrast, **base)

    def chosen_channels(self, source: ImageSource) -> tuple[int, ...] | None:
        """The channels of ``source``, where they are not those that any reader would take."""
        return None if self.channels == _choose_channels(source, None) else self.channels

    @property
    def needed(self) -> tuple[int, ...]:
        """The channels that a result depends on: the chosen ones, and alpha where it masks."""
        return tuple(dict.fromkeys((*self.channels, *(() if self.alpha is None else (self.alpha,)))))

    def of_needed(self) -> IntensityPolicy:
        """The same for pixels that hold the :attr:`needed` channels alone, in that order."""
        place = {channel: i for i, channel in enumerate(self.needed)}
        alpha = None if self.alpha is None else place[self.alpha]
        return replace(self, channels=tuple(place[c] for c in self.channels), alpha=alpha)

    def apply(self, raw: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_] | None]:
        """``raw (h, w, C)`` to RGB ``float32 (h, w, 3)`` on 0..255 and valid ``bool (h, w)``, None if all are valid.

        Pixels that are not valid (alpha 0, nodata in every chosen channel, not finite) come out black.
        """
        if raw.ndim != 3 or raw.shape[2] <= max(self.channels):
            raise InputError(f"Channels {list(self.channels)} were asked for, the pixels have shape {raw.shape}.")
        if self.keeps(raw):
            return raw.astype(np.float32, order="C"), None  # most images; a fifth of the time of the general way
        valid = self.valid(raw)
        rgb = np.empty((*raw.shape[:2], 3), np.float32)
        for i, channel in enumerate(self.channels):
            plane: npt.NDArray[Any] = raw[..., channel].astype(np.float32 if raw.dtype.itemsize <= 2 else np.float64)
            if (self.low[i], self.high[i]) != (0.0, 255.0):
                plane = (plane - self.low[i]) * (255.0 / (self.high[i] - self.low[i]))
            rgb[..., i] = np.clip(plane, 0, 255)
        if len(self.channels) == 1:
            rgb[..., 1] = rgb[..., 2] = rgb[..., 0]
        if valid is not None:
            rgb[~valid] = 0
        return rgb, valid

    def keeps(self, raw: npt.NDArray[Any]) -> bool:
        """True when :meth:`apply` changes no value: 8-bit RGB without alpha or nodata, as it is."""
        kept = self.channels == (0, 1, 2) and self.low == (0.0,) * 3 and self.high == (255.0,) * 3
        return kept and raw.dtype == np.uint8 and raw.shape[2] == 3 and self.valid(raw) is None

    def valid(self, raw: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
        """Which pixels of ``raw (h, w, C)`` are image, as ``bool (h, w)``; None where nothing can tell (all are)."""
        valid: npt.NDArray[np.bool_] | None = None
        chosen = [raw[..., c] for c in self.channels]
        if raw.dtype.kind == "f":
            valid = np.logical_and.reduce([np.isfinite(c) for c in chosen])
        if self.nodata is not None and not math.isnan(self.nodata):
            # As GDAL does for its dataset mask: a pixel is missing only if all of its bands are.
            # Compared as a plain number: a value that the samples' type cannot hold (-9999 in 8 bits) matches none.
            data = np.logical_or.reduce([c != self.nodata for c in chosen])
            valid = data if valid is None else valid & data
        if self.alpha is not None:
            seen = raw[..., self.alpha] > 0
            valid = seen if valid is None else valid & seen
        return valid

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form (NaN as text, which JSON has no number for)."""
        values = asdict(self)
        if self.nodata is not None and not math.isfinite(self.nodata):
            values["nodata"] = str(self.nodata)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def parse_contrast(text: str) -> Contrast:
    """``auto``, ``none`` or ``LOW,HIGH`` in the image's own values, as a person types them."""
    if text in ("auto", "none"):
        return text
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"'{text}' must be auto, none or LOW,HIGH with LOW below HIGH, such as 0,4095.")
    return low, high


def parse_channels(text: str) -> tuple[int, ...]:
    """``0,1,2`` (red, green, blue) or one channel for a grey picture, as a person types them."""
    parts = text.split(",")
    if len(parts) not in (1, 3) or not all(re.fullmatch(r" *\d+ *", part) for part in parts):
        raise InputError(f"'{text}' must be three channel numbers from 0, such as 0,1,2, or a single one.")
    return tuple(int(part) for part in parts)


def full_range(dtype: np.dtype[Any]) -> tuple[float, float]:
    """Values that become 0 and 255 without any stretching: the integer type's range from 0 on, 0..1 for floats."""
    if dtype.kind in "bf":
        return 0.0, 1.0
    return 0.0, float(np.iinfo(dtype).max)


def _choose_channels(source: ImageSource, channels: Sequence[int] | None) -> tuple[int, ...]:
    if channels is None:
        told: tuple[int, ...] | None = getattr(source, "rgb", None)
        if told is not None:
            return told
        color = [c for c in range(source.channels) if c != source.alpha] or [0]
        return tuple(color[:3]) if len(color) >= 3 else (color[0],)
    chosen = tuple(int(c) for c in channels)
    if len(chosen) not in (1, 3) or not all(0 <= c < source.channels for c in chosen):
        raise InputError(
            f"Channels {','.join(map(str, chosen))} were asked for; {source.name} has channels 0 to "
            f"{source.channels - 1}, of which one or three can be chosen."
        )
    return chosen


def sample_windows(source: ImageSource) -> tuple[int, list[Window]]:
    """A level and windows of it that stand for the image while few pixels are read (at most about 4 million).

    The coarsest level of at least 65536 pixels, whole, or 8 x 8 windows spread over it where that is still large.
    """
    level = max((i for i, (r, c) in enumerate(source.levels) if r * c >= _LEAST_LEVEL_PIXELS), default=0)
    rows, columns = source.levels[level]
    if rows * columns <= _WHOLE_LEVEL_PIXELS:
        return level, [Window(0, 0, rows, columns)]
    height, width = min(rows, _SAMPLE_SIDE), min(columns, _SAMPLE_SIDE)
    tops = sorted({int(v) for v in np.linspace(0, rows - height, _SAMPLE_WINDOWS)})
    lefts = sorted({int(v) for v in np.linspace(0, columns - width, _SAMPLE_WINDOWS)})
    return level, [Window(top, left, height, width) for top in tops for left in lefts]


def _percentiles(source: ImageSource, plain: IntensityPolicy) -> tuple[tuple[float, ...], tuple[float, ...]]:
    source, part = without_overviews(source), plain.of_needed()
    level, windows = sample_windows(source)
    samples = []
    for window in windows:
        try:
            raw = read_channels(source, window, plain.needed, level)
        except TileError:
            continue  # one bad tile does not keep us from knowing the rest; reading it in earnest reports it
        valid = part.valid(raw)
        values = raw[..., list(part.channels)]
        samples.append(values[valid] if valid is not None else values.reshape(-1, len(part.channels)))
    values = np.concatenate(samples) if samples else np.empty((0, len(plain.channels)))
    if not len(values):
        return plain.low, plain.high
    low, high = np.percentile(values.astype(np.float64), (LOW_PERCENTILE, HIGH_PERCENTILE), axis=0)
    # An image of one value has no contrast to stretch; any width keeps the division defined.
    high = np.where(high > low, high, low + np.maximum(1.0, np.abs(low) * 1e-6))
    return tuple(float(v) for v in low), tuple(float(v) for v in high)
