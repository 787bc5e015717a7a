"""What is lost and saved where the full-resolution work is skipped because a coarse prediction is certain there.

The coarse prediction is the same network's on the image at half or a quarter of the side, as the first pass of
ultra-high-resolution methods that refine by need. Squares in which it is most certain keep it; the rest have the full
answer. This is the most that such a slider could save: one forward over the whole image each, nothing for windows.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from napari_isdnet_training.benchmark.loop import Scene

from napari_isdnet.engine.metrics import ConfusionMatrix
from napari_isdnet.exceptions import InputError
from napari_isdnet.progress import Clock, Progress

CERTAIN_COLUMNS = (
    "downscale", "cell", "skipped_percent", "work", "miou", "miou_coarse", "miou_full", "agreement_skipped"
)  # fmt: skip
LEAST = 0.1
"""A square is as certain as this quantile of its pixels, so that a small uncertain object counts."""
Labels = npt.NDArray[np.uint8]


def measure_certain(
    image: Path, mask: Path, model: str, *, downscales: Sequence[int] = (2, 4), shares: Sequence[float] = (10, 25, 50),
    cells: Sequence[int] = (64, 256), device: str = "auto",
) -> Generator[Progress, None, list[dict[str, Any]]]:  # fmt: skip
    """Rows of :data:`CERTAIN_COLUMNS`, for every downscale, side of the squares and share that is skipped (percent).

    ``work`` is the multiply-adds of the coarse pass and of what is left, over those of the full forward;
    ``agreement_skipped`` the share of skipped pixels whose coarse class is the full one. Raises :class:`InputError`
    for a scene that is smaller than a square, and shares outside 0 to 100.
    """
    scene = Scene(image, mask, model, device)
    for share in shares:
        if not 0 < share < 100:
            raise InputError(f"The share that is skipped must be above 0 and below 100 percent, got {share:g}.")
    for cell in cells:
        if not 1 <= cell <= min(scene.shape):
            raise InputError(f"Squares of {cell} do not fit an image of {scene.shape[0]} x {scene.shape[1]}.")
    clock = Clock(1 + len(downscales))
    full = scene.probabilities(model).argmax(0).numpy().astype(np.uint8)
    yield clock.step(1, "full")
    rows: list[dict[str, Any]] = []
    for downscale in downscales:
        probabilities = scene.probabilities(model, downscale)
        coarse, sure = probabilities.argmax(0).numpy().astype(np.uint8), probabilities.amax(0).numpy()
        base = {"downscale": downscale, "miou_coarse": _miou(coarse, scene), "miou_full": _miou(full, scene)}
        for cell in cells:
            order = certainty(sure, cell)
            for share in shares:
                skipped = most_certain(order, share / 100, cell, scene.shape)
                part = float(skipped.mean())
                rows.append({
                    **base, "cell": cell, "skipped_percent": round(100 * part, 2),
                    "work": round(1 / downscale**2 + 1 - part, 4),
                    "miou": _miou(np.where(skipped, coarse, full), scene),
                    "agreement_skipped": round(float((coarse == full)[skipped].mean()), 4) if part else "",
                })  # fmt: skip
        yield clock.step(1, f"1/{downscale}")
    return rows


def certainty(sure: npt.NDArray[np.float32], cell: int) -> npt.NDArray[np.float32]:
    """The :data:`LEAST` quantile of the highest class probability (H, W) in every whole square of ``cell`` pixels."""
    rows, columns = (side // cell for side in sure.shape)
    squares = sure[: rows * cell, : columns * cell].reshape(rows, cell, columns, cell)
    return np.quantile(squares.transpose(0, 2, 1, 3).reshape(rows, columns, -1), LEAST, axis=2).astype(np.float32)


def most_certain(
    order: npt.NDArray[np.float32], share: float, cell: int, shape: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Mask (H, W) of the squares that are most certain, ``share`` of them (0 to 1); cut squares at the edges never."""
    chosen = np.zeros(order.size, bool)
    chosen[np.argsort(-order, axis=None, kind="stable")[: round(share * order.size)]] = True
    mask = np.zeros(shape, bool)
    rows, columns = order.shape
    mask[: rows * cell, : columns * cell] = np.kron(chosen.reshape(order.shape), np.ones((cell, cell), bool))
    return mask


def _miou(labels: Labels, scene: Scene) -> float:
    matrix = ConfusionMatrix(len(scene.classes))
    matrix.update(labels, scene.truth)
    return round(float(matrix.mean_iou), 5)
