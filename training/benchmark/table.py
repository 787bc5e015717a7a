"""The results table: networks of the registry with one budget on one data set, beside the majority class."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from napari_isdnet_training.benchmark.output import RunLog, alone_at
from napari_isdnet_training.benchmark.process import Job, run_worker
from napari_isdnet_training.benchmark.runs import setting, train, variant
from napari_isdnet_training.config import Recipe
from napari_isdnet_training.datasets import Dataset, open_dataset
from napari_isdnet_training.evaluate import figures
from napari_isdnet_training.registry import REGISTRY, check_available
from napari_isdnet_training.sources import open_mask, read_mask

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.engine.metrics import ConfusionMatrix
from napari_isdnet.progress import Clock, Progress
from napari_isdnet.window import Grid

MAJORITY = "majority class"
SPEED_SIZE = (1024, 1024)


def table_columns(recipe: Recipe, dataset: Dataset | None = None) -> tuple[str, ...]:
    """Columns of the table of a recipe: one IoU for every class of its data."""
    classes = (dataset or open_dataset(recipe.data)).classes
    return (
        "network", "backbone", "seed", "steps", "recipe", "setting", "miou", "accuracy",
        *(f"iou_{c.name}" for c in classes),
        "p50_ms", "peak_mib", "parameters_m", "gmacs", "speed_size", "device", "seconds",
    )  # fmt: skip


@alone_at("output")
def table(
    recipe: Recipe, output: Path, networks: Sequence[str], steps: int, seeds: int, runs: Path | None,
    notes: Sequence[str], speed: bool = True,
) -> Generator[Progress, None, list[dict[str, Any]]]:  # fmt: skip
    """Train and evaluate ``networks`` on the recipe's data; rows are appended to ``output``, finished ones skipped.

    Rows of another setting (recipe or data) stay in the file and are not returned.
    The recipe's options are ISDNet's and go to the recipe's own network only. Speed, memory and multiply-adds are those
    of one image of :data:`SPEED_SIZE` in a process of its own; without ``speed`` they are left empty.
    """
    check_available(networks)
    dataset = open_dataset(recipe.data)
    log = RunLog(output, table_columns(recipe, dataset), ("network", "seed", "steps", "recipe", "setting"), notes)
    common = {"recipe": recipe.name, "setting": setting(recipe)}
    folder = runs or output.with_suffix(".runs")
    clock = Clock(len(networks) * seeds + 1)
    if not log.done(network=MAJORITY, **common):
        log.add({"network": MAJORITY, **common, **_scores(figures(majority(dataset), dataset))})
    yield clock.step(1, MAJORITY)
    for seed in range(seeds):
        for name in networks:
            before = clock.done
            key = {"network": name, "seed": seed, "steps": steps, **common}
            known = log.done(**key)
            if not known:
                options = recipe.model.options if name == recipe.model.name else {}
                one = variant(recipe, steps, seed, name, options)
                trained = yield from train(one, folder, clock, f"{name}, seed {seed}")
                row: dict[str, Any] = {**key, **_scores(trained.figures), "seconds": round(trained.seconds, 1)}
                row["backbone"] = "ImageNet" if recipe.model.pretrained and REGISTRY[name].takes_weights else "scratch"
                log.add({**row, **(_speed(name, dict(options), len(dataset.classes)) if speed else {})})
            yield clock.reach(before + 1, f"{name}, seed {seed}", resumed=known)
    mine = [r for r in log.rows if all(r[k] == v for k, v in common.items())]
    return [r for r in mine if r["steps"] in ("", str(steps))]


def majority(dataset: Dataset) -> ConfusionMatrix:
    """Confusion matrix on the validation split of always saying the class that is most frequent in training."""
    counts = np.zeros(256, np.int64)
    for _, mask in _masks(dataset, "train"):
        counts += np.bincount(mask.ravel(), minlength=256)
    most = int(counts[:IGNORE_INDEX].argmax())
    matrix = ConfusionMatrix(len(dataset.classes), dataset.ignored_in_mean)
    for _, mask in _masks(dataset, "validation"):
        matrix.update(np.full(mask.shape, most, np.uint8), mask)
    return matrix


def _masks(dataset: Dataset, split: str) -> Generator[tuple[str, np.ndarray[Any, Any]], None, None]:
    for sample in dataset.split(split):
        source = open_mask(sample.mask, dataset.code)
        try:
            for window in Grid(source.shape, (4096, 4096)):
                yield sample.name, read_mask(source, window, dataset.code, sample.mask.name)
        finally:
            source.close()


def _scores(found: dict[str, Any]) -> dict[str, Any]:
    scores = {f"iou_{name}": values["iou"] for name, values in found.get("classes", {}).items()}
    return {"miou": found.get("miou"), "accuracy": found.get("accuracy"), **scores}


def _speed(name: str, options: dict[str, Any], classes: int) -> dict[str, Any]:
    job = Job(f"registry:{name}", size=SPEED_SIZE, options=options, classes=classes, count=True)
    outcome = run_worker(job, 60.0, 20 << 30)
    row: dict[str, Any] = {"speed_size": f"{SPEED_SIZE[0]}x{SPEED_SIZE[1]}", **outcome.network_facts()}
    if outcome.status == "ok":
        row["p50_ms"] = round(float(np.median(outcome.seconds)) * 1e3, 1)
        row["peak_mib"] = round(outcome.peak_bytes / 2**20)
    return row
