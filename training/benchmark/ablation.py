"""Tables 5, 6 and 7 of the paper as training runs on any data set, appended one by one to a CSV."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from napari_isdnet_training.benchmark.output import RunLog, alone_at
from napari_isdnet_training.benchmark.runs import setting, train, variant
from napari_isdnet_training.config import Recipe
from napari_isdnet_training.datasets import open_dataset

from napari_isdnet.exceptions import InputError
from napari_isdnet.progress import Clock, Progress

ABLATION_COLUMNS = (
    "table", "variant", "seed", "steps", "recipe", "setting", "options", "miou", "accuracy", "seconds"
)  # fmt: skip

_NO_LABEL_FREE = {"super_resolution": False, "distillation": None}
VARIANTS: Mapping[int, Mapping[str, Mapping[str, Any]]] = {
    5: {
        "deep alone, full scale": {"branches": "deep", "downscale": 1},
        "deep alone, 1/4": {"branches": "deep"},
        "shallow alone, full scale": {"branches": "shallow", "downscale": 1},
        "shallow alone, 1/4": {"branches": "shallow"},
        "both, added": {"fusion": "add"},
        "both, RAF": {},
    },
    6: {
        "add": {"fusion": "add"},
        "concatenate": {"fusion": "cat"},
        "add, channel attention": {"fusion": "add_ca"},
        "concatenate, channel attention": {"fusion": "cat_ca"},
        "RAF, shallow gated only": {"fusion": "raf_single"},
        "RAF": {},
    },
    7: {
        "image, no label-free loss": {"shallow_input": "rgb", **_NO_LABEL_FREE},
        "residuals, no label-free loss": _NO_LABEL_FREE,
        "residuals, super-resolution": {"distillation": None},
        "residuals, super-resolution, distillation": {},
        "image, super-resolution, distillation": {"shallow_input": "rgb"},
    },
}
"""By table and variant: what differs from the recipe's own network (branches, fusion, losses and residual input)."""


@alone_at("output")
def ablation(
    recipe: Recipe, output: Path, tables: Iterable[int], steps: int, seeds: int, runs: Path | None, notes: Sequence[str]
) -> Generator[Progress, None, list[dict[str, Any]]]:
    """Train every variant of the tables with every seed; returns the rows (keys :data:`ABLATION_COLUMNS`).

    Runs that are in ``output`` are skipped, those of another setting (recipe or data) are other rows; one configuration
    that stands in several tables is trained once. Seed after seed, so that a benchmark that is cut short has compared
    every variant under the first ones. Raises :class:`InputError` for a table the paper does not have or a recipe
    without ISDNet.
    """
    wanted = list(dict.fromkeys(tables))
    for table in wanted:
        if table not in VARIANTS:
            raise InputError(f"There is no ablation of table {table}; allowed are {', '.join(map(str, VARIANTS))}.")
    if not recipe.model.name.startswith("isdnet"):
        raise InputError(f"The ablation is of ISDNet; recipe '{recipe.name}' trains '{recipe.model.name}'.")
    open_dataset(recipe.data).split("validation")  # or say, before hours of training, that nothing can judge it
    log = RunLog(output, ABLATION_COLUMNS, ("table", "variant", "seed", "steps", "recipe", "setting"), notes)
    common = {"steps": steps, "recipe": recipe.name, "setting": setting(recipe)}
    folder = runs or output.with_suffix(".runs")
    todo = [(seed, table, name) for seed in range(seeds) for table in wanted for name in VARIANTS[table]]
    clock = Clock(len(todo))
    for seed, table, name in todo:
        before = clock.done
        key = {"table": table, "variant": name, "seed": seed, **common}
        known = log.done(**key)
        if not known:
            options = {**recipe.model.options, **VARIANTS[table][name]}
            text = json.dumps(options, sort_keys=True)
            twin = log.find(seed=seed, options=text, **common)
            if twin is not None:
                figures = {k: twin[k] for k in ("miou", "accuracy", "seconds")}
            else:
                one = variant(recipe, steps, seed, recipe.model.name, options)
                trained = yield from train(one, folder, clock, f"table {table}, {name}, seed {seed}")
                figures = {"miou": trained.figures.get("miou"), "accuracy": trained.figures.get("accuracy")}
                figures["seconds"] = round(trained.seconds, 1)
            log.add({**key, "options": text, **figures})
        yield clock.reach(before + 1, f"table {table}, {name}, seed {seed}", resumed=known)
    return [r for r in log.rows if all(r[k] == str(v) for k, v in common.items())]


def _rounded(value: float) -> float | None:
    """None for a figure that does not exist (a row of an earlier version without a validation)."""
    return None if np.isnan(value) else round(value, 4)


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean, standard deviation and number of seeds of the mIoU of every variant."""
    groups: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        groups.setdefault((str(row["table"]), str(row["variant"])), []).append(float(row["miou"] or "nan"))
    return [
        {
            "table": table,
            "variant": name,
            "seeds": len(values),
            "miou": _rounded(float(np.mean(values))),
            "std": _rounded(float(np.std(values, ddof=1))) if len(values) > 1 else None,
        }
        for (table, name), values in sorted(groups.items(), key=lambda item: item[0][0])
    ]
