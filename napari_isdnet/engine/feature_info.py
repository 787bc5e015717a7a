"""Which maps of a network can be looked at, what they are called, and how they lie on the image. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from napari_isdnet.exceptions import InputError
from napari_isdnet.window import Window

if TYPE_CHECKING:
    from napari_isdnet.model.isdnet import ISDNet

ATTENTION = ("M_s16", "M_d16", "R16", "M_s8", "M_d8", "R8")
LOGITS: dict[str, Literal["both", "shallow", "deep"]] = {
    "logits": "both",
    "logits_shallow": "shallow",
    "logits_deep": "deep",
}
TITLES = {
    "shallow8": "Shallow, 1/8",
    "shallow16": "Shallow, 1/16",
    "deep": "Deep",
    "fused16": "Fused, 1/16",
    "fused8": "Fused, 1/8",
    "super_resolution": "Super-resolution output",
    "logits": "Logits",
    "logits_shallow": "Logits, shallow branch alone",
    "logits_deep": "Logits, deep branch alone",
}
_BEFORE_DEEP, _SUPER_RESOLUTION = ("shallow8", "shallow16"), 16


@dataclass(frozen=True)
class Extent:
    """How a map lies on the image: its shape in cells, and the pixels of level 0 that a cell covers down and across.

    Cells are areas: cell ``i`` covers pixels from ``i * scale`` to ``(i + 1) * scale`` in pixel corners, so its centre
    is at pixel ``(i + 0.5) * scale - 0.5``. That is also how the network enlarges its maps (``align_corners=False``),
    so that a map lies under the classes that were made of it.
    """

    shape: tuple[int, int]
    scale: tuple[float, float]

    def translate(self, window: Window) -> tuple[float, float]:
        """Position, in pixel centres of level 0, of the first cell of ``window``."""
        return (
            (window.row + 0.5) * self.scale[0] - 0.5,
            (window.column + 0.5) * self.scale[1] - 0.5,
        )

    def covering(self, region: Window) -> Window:
        """The cells that cover a rectangle of level-0 pixels."""
        bounds = []
        for axis, (start, stop) in enumerate(((region.row, region.bottom), (region.column, region.right))):
            first = min(int(start / self.scale[axis] + 1e-9), self.shape[axis] - 1)
            last = int(-(-(stop / self.scale[axis] - 1e-9) // 1))
            bounds.append((first, min(max(last, first + 1), self.shape[axis])))
        return Window.from_bounds(bounds[0][0], bounds[1][0], bounds[0][1], bounds[1][1])

    def cell(self, row: float, column: float) -> tuple[int, int]:
        """The cell in which a pixel lies (pixel centres), cut at the map's border."""
        picked = [
            min(max(int((position + 0.5) // scale), 0), count - 1)
            for position, scale, count in zip((row, column), self.scale, self.shape, strict=True)
        ]
        return picked[0], picked[1]


@dataclass(frozen=True)
class MapInfo:
    """A map that can be looked at: its name, how people call it, channels, stride in pixels, and extent."""

    name: str
    title: str
    channels: int
    stride: float
    extent: Extent

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "name": self.name,
            "title": self.title,
            "channels": self.channels,
            "stride": self.stride,
            "shape": list(self.extent.shape),
            "scale": list(self.extent.scale),
        }


def strides_of(model: ISDNet) -> dict[str, float]:
    """Every map of a network that can be looked at -> stride in level-0 pixels, in the order of the forward pass."""
    config = model.config
    base = config.downscale if config.branches == "shallow" else 1
    deep = 0
    if config.branches != "shallow":
        deep = config.downscale * int(getattr(model.backbone, "output_stride", config.deep_stride))
    result: dict[str, float] = {}
    if config.branches != "deep":
        if config.shallow_input != "rgb":
            result |= {f"H{level}": float(base) for level in range(config.residual_levels)}
        result |= {"shallow8": 8.0 * base, "shallow16": 16.0 * base}
    if deep:
        result["deep"] = float(deep)
    if config.fuses:
        result["fused16"] = 16.0
    if config.branches != "deep":
        result["fused8"] = 8.0 * base
    if hasattr(model, "super_resolution") and deep:
        result["super_resolution"] = deep / _SUPER_RESOLUTION
    logits = 8.0 * base if config.branches != "deep" else float(deep)
    result |= dict.fromkeys(LOGITS if config.fuses else ("logits",), logits)
    return result


def channels_of(model: ISDNet, name: str) -> int:
    """Number of channels of a map."""
    if name in _BEFORE_DEEP:
        return int(model.shallow.out_channels[_BEFORE_DEEP.index(name)])
    if name in LOGITS:
        return int(model.config.num_classes)
    return 3 if name == "super_resolution" or name.startswith("H") else int(model.config.channels)


def title_of(name: str, stride: float) -> str:
    """How people call a map."""
    if name.startswith("H"):
        return f"Residual H{name[1:]} (Laplacian pyramid)"
    return f"{TITLES[name]}, 1/{stride:g}" if name == "deep" else TITLES[name]


def chosen(layers: tuple[str, ...], available: tuple[str, ...]) -> tuple[str, ...]:
    """The maps a user asked for: names, ``residuals`` for all H, nothing for all."""
    result: list[str] = []
    for layer in layers or available:
        names = [name for name in available if name.startswith("H")] if layer == "residuals" else [layer]
        if not names or names[0] not in available:
            raise InputError(
                f"There is no layer '{layer}' in this network; it has {', '.join(available)}, and residuals for all H."
            )
        result += [name for name in names if name not in result]
    return tuple(result)
