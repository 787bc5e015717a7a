"""Systems that are listed and not measured: why, and what was published, where that could be checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Listed:
    """A system that is listed and not run. ``published`` are columns of the table, each checked against its source."""

    name: str
    reason: str
    published: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """One line for people."""
        figures = ""
        if self.published:
            figures = "{published_fps} images a second at {height} x {width}, {published_miou} % mIoU, ".format_map(
                self.published
            )
        return f"{self.name}: {figures}{self.reason}"


_CODE = "published as research code only; not measured here, and its published figures could not be checked"

LISTED: tuple[Listed, ...] = (
    Listed(
        "ISDNet, its authors' figure",
        "published, not measured here: DeepGlobe, CVPR 2022, abstract",
        {"height": 2448, "width": 2448, "published_fps": 27.70, "published_miou": 73.30},
    ),
    *(Listed(name, _CODE) for name in ("GLNet", "FCtL", "MagNet", "PPN", "SegFix")),
    Listed(
        "CascadePSP",
        "not measured here: its package fetches the weights as a pickle when it is first used, and with other weights"
        " its time would be another's, since it skips crops by its own prediction",
    ),
)

SCALE_NOTE = (
    "Published frames per second of ISDNet are of a smaller image: its timing script shrinks to 0.8 of the stated side"
    " (0.64 of the pixels) and takes no argmax. Here the stated size is labelled in full."
)


def listed_rows(columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows for the table: no measured figure, the reason as ``status``."""
    return [{**dict.fromkeys(columns), "network": one.name, "status": one.reason, **one.published} for one in LISTED]
