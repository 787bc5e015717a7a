"""What a pretrained backbone's features know of a scene they never saw, before anything is trained for hours.

A small classifier is trained on frozen features of single stages, of the image at several scales, and judged on the
validation scenes. The deep branch of ISDNet sees the image at 1/4: this says what that costs with a given backbone.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from napari_isdnet_training.benchmark.output import RunLog, alone_at
from napari_isdnet_training.benchmark.runs import setting
from napari_isdnet_training.census import check_dataset
from napari_isdnet_training.config import Recipe
from napari_isdnet_training.crops import CropDataset
from napari_isdnet_training.datasets import Dataset, Split, open_dataset
from napari_isdnet_training.sampling import CropSampler
from torch import Tensor, nn

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.engine.metrics import ConfusionMatrix
from napari_isdnet.exceptions import InputError
from napari_isdnet.model.deep import load_pretrained
from napari_isdnet.model.laplacian import LaplacianPyramid
from napari_isdnet.progress import Clock, Progress

CELL = 16
"""One pixel of a square of so many is classified; features are interpolated there."""
HIDDEN, STEPS, BATCH, RATE, DECAY = 64, 250, 4096, 3e-3, 0.05
ALL = "all"
Labelled = tuple[Tensor, Tensor]
"""Images (N, 3, H, W), and the classes of one pixel of every cell, (N, rows, columns)."""


def feature_columns(dataset: Dataset) -> tuple[str, ...]:
    """Columns of the table."""
    each = (f"iou_{c.name}" for c in dataset.classes)
    first = ("backbone", "downscale", "stage", "channels", "stride", "crops", "seed", "setting")
    return (*first, "miou_train", "miou", *each)


@alone_at("output")
def features(
    recipe: Recipe, backbone: str, output: Path, downscales: Sequence[int], crops: int, seeds: int,
    notes: Sequence[str], pretrained: bool = True,
) -> Generator[Progress, None, list[dict[str, Any]]]:  # fmt: skip
    """Probe every stage of a timm backbone (and all together) on crops of the recipe's data; rows go to ``output``.

    ``crops`` of the training scenes teach, a third as many of the validation scenes judge; both are drawn and augmented
    as the recipe says. ``stride`` is that of the features on the image itself. Rows of another setting (recipe, data or
    weights) stay in the file and are not returned. Raises :class:`InputError` for a backbone that timm has not,
    weights that cannot be had, or data without a validation split.
    """
    dataset = open_dataset(recipe.data)
    keys = ("backbone", "downscale", "stage", "crops", "seed", "setting")
    log, own = RunLog(output, feature_columns(dataset), keys, notes), setting(recipe, pretrained=pretrained)
    census = check_dataset(dataset)
    if not census.get("validation"):
        raise InputError("The features are judged on the validation split; name scenes with --set data.validation=...")
    body, strides = _body(backbone, pretrained)
    clock = Clock(seeds * len(downscales))
    for seed in range(seeds):
        train = _draw(recipe, dataset, census, "train", crops, seed)
        judge = _draw(recipe, dataset, census, "validation", max(1, crops // 3), seed)
        for downscale in downscales:
            before = clock.done
            key = {"backbone": backbone, "downscale": downscale, "crops": crops, "seed": seed, "setting": own}
            known = log.done(**key, stage=ALL)
            if not known:
                for row in _stages(body, strides, train, judge, downscale, seed, dataset):
                    if not log.done(**key, stage=row["stage"]):
                        log.add({**key, **row})
            yield clock.reach(before + 1, f"1/{downscale}, seed {seed}", resumed=known)
    return [row for row in log.rows if row["setting"] == own]


def _stages(
    body: nn.Module, strides: list[int], train: Labelled, judge: Labelled, downscale: int, seed: int, dataset: Dataset
) -> Generator[dict[str, Any], None, None]:
    """A row for every stage, and one for all together."""
    (teach, labels), (test, truth) = (
        _features(body, _cut(part, max(strides) * downscale), downscale) for part in (train, judge)
    )
    groups = {str(n): [n] for n in range(len(strides))} | {ALL: list(range(len(strides)))}
    for stage, members in groups.items():
        a, b = (torch.cat([maps[n] for n in members], dim=1) for maps in (teach, test))
        own, other = probe(a, labels, b, truth, len(dataset.classes), seed)
        each = {f"iou_{c.name}": round(float(v), 4) for c, v in zip(dataset.classes, other.iou) if not np.isnan(v)}
        yield {
            "stage": stage, "channels": a.shape[1], "stride": "" if stage == ALL else downscale * strides[members[0]],
            "miou_train": round(float(own.mean_iou), 4), "miou": round(float(other.mean_iou), 4), **each,
        }  # fmt: skip


def _body(name: str, pretrained: bool) -> tuple[nn.Module, list[int]]:
    import timm

    if not timm.is_model(name):
        raise InputError(f"There is no backbone '{name}' in timm; tf_efficientnet_lite0 is one.")
    holder = nn.Module()
    body: Any = timm.create_model(name, features_only=True)
    holder.body = body
    if pretrained:
        load_pretrained(holder, name)
    return body.eval(), [int(s) for s in body.feature_info.reduction()]


def _draw(recipe: Recipe, dataset: Dataset, census: Any, split: Split, count: int, seed: int) -> Labelled:
    """Crops as they are drawn."""
    sampler = CropSampler(census[split], recipe.crop, seed)
    source = CropDataset(dataset.split(split), sampler, recipe.data, recipe.crop, recipe.augment, dataset.code)
    images, masks = zip(*(source[n] for n in range(count)), strict=True)
    half = CELL // 2
    return torch.stack(images), torch.stack(masks)[:, half::CELL, half::CELL]


def _cut(drawn: Labelled, stride: int) -> Labelled:
    """The crops cut at their far ends to whole steps of a stride: a map of a part of one lies beside its pixels."""
    images, labels = drawn
    step = math.lcm(stride, CELL)
    height, width = (side // step * step or side // CELL * CELL for side in images.shape[2:])
    return images[:, :, :height, :width], labels[:, : height // CELL, : width // CELL]


@torch.inference_mode()
def _features(body: nn.Module, drawn: Labelled, downscale: int) -> tuple[list[Tensor], Tensor]:
    """Of every stage, (N * cells, C) in the middle of the cells; and the classes of these, (N * cells)."""
    images, labels = drawn
    pyramid, size = LaplacianPyramid(1), tuple(labels.shape[1:])
    found: list[list[Tensor]] = []
    for start in range(0, len(images), 4):
        part = images[start : start + 4]
        if downscale > 1:
            part = pyramid.lowpass(part, downscale.bit_length() - 1)
        maps = [F.interpolate(m, size=size, mode="bilinear", align_corners=False) for m in body(part)]
        found.append([m.permute(0, 2, 3, 1).reshape(-1, m.shape[1]) for m in maps])
    return [torch.cat(parts) for parts in zip(*found, strict=True)], labels.reshape(-1)


def probe(
    teach: Tensor, labels: Tensor, test: Tensor, truth: Tensor, classes: int, seed: int
) -> tuple[ConfusionMatrix, ConfusionMatrix]:
    """Train one hidden layer on features (N, C) with classes (N), 255 ignored; judge it there and on ``test``."""
    known, judged = labels != IGNORE_INDEX, truth != IGNORE_INDEX
    teach, labels, test, truth = teach[known], labels[known], test[judged], truth[judged]
    middle, spread = teach.mean(0), teach.std(0) + 1e-5
    teach, test = (teach - middle) / spread, (test - middle) / spread
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(teach.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
    for _ in range(STEPS):
        chosen = torch.randint(0, len(labels), (BATCH,))
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(net(teach[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    result = []
    for values, wanted in ((teach, labels), (test, truth)):
        matrix = ConfusionMatrix(classes)
        with torch.inference_mode():
            said = net(values).argmax(1)
        matrix.update(said.numpy().astype(np.uint8)[None], wanted.numpy().astype(np.uint8)[None])
        result.append(matrix)
    return result[0], result[1]
