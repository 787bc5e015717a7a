"""Figures of a network on whole images: one forward over all of a scene, never over training crops."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from napari_isdnet_training.census import check_shapes
from napari_isdnet_training.config import DataConfig
from napari_isdnet_training.datasets import Dataset, Sample
from napari_isdnet_training.registry import Network
from napari_isdnet_training.sources import colors_of, normalised, open_mask, policy_of, read_image, read_mask

from napari_isdnet.classes import IGNORE_INDEX, index_of
from napari_isdnet.engine.device import device_memory
from napari_isdnet.engine.enlarge import best_of
from napari_isdnet.engine.metrics import ConfusionMatrix
from napari_isdnet.engine.orientations import orientations
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.open import open_source
from napari_isdnet.model.header import ModelHeader
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.progress import Clock, Progress
from napari_isdnet.window import Grid, Window

WHOLE_PIXELS = 64_000_000
LARGE_WINDOW = 4096


def as_trained(header: ModelHeader, model: str, dataset: Dataset, data: DataConfig) -> tuple[DataConfig, str | None]:
    """The recipe's data as the model takes it, and a sentence where the two name their classes differently.

    The normalisation is the model's own, and so are contrast and channels where they were chosen for it. Raises
    :class:`InputError` for another number of classes, and for a name in another place, whose figures would be wrong.
    """
    mine, other = [c.name for c in header.classes], [c.name for c in dataset.classes]
    if len(mine) != len(other):
        raise InputError(f"Model '{model}' has {len(mine)} classes, the recipe {len(other)}; use one that fits.")
    if any(index_of(name, mine) not in (None, place) for place, name in enumerate(other)):
        raise InputError(
            f"Model '{model}' numbers its classes {', '.join(mine)} and the recipe {', '.join(other)}; bring"
            " data.classes and the masks into the model's order."
        )
    note = f"The classes have other names ({', '.join(mine)}; recipe: {', '.join(other)}): indices compared."
    own: dict[str, Any] = {"mean": header.mean, "std": header.std}
    if header.contrast:
        own |= {"contrast": header.contrast.get("asked", "auto"), "channels": header.contrast.get("channels")}
    return data.model_copy(update=own), None if mine == other else note


@torch.no_grad()
def predict_whole(
    network: Network, image: npt.NDArray[np.float32], data: DataConfig, count: int = 1
) -> npt.NDArray[np.uint8]:
    """Class indices (H, W) of an image (H, W, 3), 0..255, in one forward over all of it, in evaluation mode.

    With a ``count`` of 2, 4 or 8 the logits of so many orientations are averaged.
    """
    was_training = network.training
    network.eval()
    try:
        device = next(network.parameters()).device
        total: torch.Tensor | None = None
        for turn in orientations(count):
            seen = normalised(turn.turn(image), data.mean, data.std)[None]
            logits = turn.back(_logits(network, seen.to(device)))
            total = logits if total is None else total + logits
        assert total is not None
        return best_of(total[0]).cpu().numpy()
    finally:
        network.train(was_training)


def _logits(network: Network, x: torch.Tensor) -> torch.Tensor:
    """Logits (B, K, H, W); those of a network in half precision are enlarged in float32, as where one segments."""
    if not isinstance(network.net, ISDNet):
        return network.logits(x)
    coarse = network.net.coarse_logits(x).float()
    return F.interpolate(coarse, size=x.shape[-2:], mode="bilinear", align_corners=False)


def evaluate_samples(
    network: Network,
    samples: Sequence[Sample],
    dataset: Dataset,
    data: DataConfig,
    count: int = 1,
    advice: str = "or take smaller images",
) -> Generator[Progress, None, ConfusionMatrix]:
    """Confusion matrix over the whole images of ``samples``, in ``count`` orientations; yields after each part.

    One forward sees all of an image up to :data:`WHOLE_PIXELS`; a larger one is cut into windows of
    :data:`LARGE_WINDOW`, each of which is its own image to the network, so that memory stays bounded. ``advice`` says
    what helps where memory is too small.
    """
    matrix = ConfusionMatrix(len(dataset.classes), dataset.ignored_in_mean)
    clock = Clock(len(samples))
    for sample in samples:
        with closing(open_mask(sample.mask, dataset.code)) as mask, closing(open_source(sample.image)) as image:
            check_shapes(sample, image, mask)
            policy = policy_of(image, data)
            for window, own in parts_of(image.shape):
                pixels, valid = colors_of(policy, read_image(image, window), data.mean)
                truth = read_mask(mask, own, dataset.code, sample.mask.name)
                inside = own.relative_to(window).slices
                if valid is not None:  # nodata and alpha 0 are no image, whatever the mask says there
                    truth = np.where(valid[inside], truth, np.uint8(IGNORE_INDEX))
                size = f"{window.height} x {window.width} pixels of {sample.name} at once"
                with device_memory(size, advice):
                    predicted = predict_whole(network, pixels, data, count)
                matrix.update(predicted[inside], truth)
                yield clock.step(0, "evaluate")
        yield clock.step(1, "evaluate")
    return matrix


def parts_of(shape: tuple[int, int]) -> list[tuple[Window, Window]]:
    """Windows that the network sees, each with the part of it that counts; those parts tile the image.

    A small image is one window. Of a large one, windows at the far edges are moved inwards, so that no sliver is seen
    without context.
    """
    if shape[0] * shape[1] <= WHOLE_PIXELS:
        return [(Window.whole(shape), Window.whole(shape))]
    height, width = min(LARGE_WINDOW, shape[0]), min(LARGE_WINDOW, shape[1])
    parts = []
    for own in Grid(shape, (height, width)):
        parts.append((Window(min(own.row, shape[0] - height), min(own.column, shape[1] - width), height, width), own))
    return parts


def score(matrix: ConfusionMatrix) -> float:
    """mIoU over the classes that truth holds, by which the steps of a run are compared; 0 where it holds none.

    Of a class that no validation sample holds, a single pixel said by mistake would make a mean of one class more of
    it, and the best step the one that never says it, which may be the first.
    """
    found = matrix.iou[matrix.counts.sum(axis=1) > 0]
    found = found[~np.isnan(found)]
    return float(found.mean()) if found.size else 0.0


def figures(matrix: ConfusionMatrix, dataset: Dataset) -> dict[str, Any]:
    """JSON-ready figures: mIoU, accuracy, and IoU, F1, precision and recall of each class (None where undefined)."""

    def plain(value: float) -> float | None:
        return None if np.isnan(value) else round(float(value), 6)

    return {
        "miou": plain(matrix.mean_iou),
        "accuracy": plain(matrix.accuracy),
        "ignored_in_mean": [dataset.classes[i].name for i in dataset.ignored_in_mean],
        "classes": {
            info.name: {
                "iou": plain(matrix.iou[k]),
                "f1": plain(matrix.f1[k]),
                "precision": plain(matrix.precision[k]),
                "recall": plain(matrix.recall[k]),
            }
            for k, info in enumerate(dataset.classes)
        },
    }
