"""When a checkpoint belongs to a recipe and its data: what may change between two parts of a run, and what may not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from napari_isdnet_training.census import MaskCensus
from napari_isdnet_training.config import Recipe
from pydantic import ValidationError

# What may change between two parts of one run without changing its numbers.
FREE_TO_CHANGE = (
    "log_every",
    "checkpoint_every",
    "validate_every",
    "workers",
    "max_seconds",
    "tensorboard",
    "early_stop",
)


def up_to_date(recipe: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's recipe with the settings that it did not know yet at their defaults, which change nothing."""
    try:
        return Recipe.model_validate(recipe).to_dict()
    except ValidationError:
        return recipe


def fixed(recipe: dict[str, Any]) -> dict[str, Any]:
    """What of a recipe decides the numbers of its run: all but :data:`FREE_TO_CHANGE`, the data's place, and words.

    Device and number of processes are in it, since sums in another order are other numbers.
    """
    run = {k: v for k, v in recipe["run"].items() if k not in FREE_TO_CHANGE}
    data = {k: v for k, v in recipe["data"].items() if k != "root"}
    return {**recipe, "run": run, "data": data, "description": "", "licence": ""}


def first_difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Where two recipes differ first, in words: ``optimizer.lr was 0.01, now 0.02``."""
    before, now = fixed(old), fixed(new)
    for key in now:
        if isinstance(now[key], dict):
            for name in now[key]:
                if before.get(key, {}).get(name) != now[key][name]:
                    return f"{key}.{name} was {before.get(key, {}).get(name)}, now {now[key][name]}"
        elif before.get(key) != now[key]:
            return f"{key} was {before.get(key)}, now {now[key]}"
    return "an older form of the recipe"


def data_digest(census: Mapping[str, Sequence[MaskCensus]]) -> str:
    """32 hexadecimal digits of what each split holds: names in their order, sizes, and pixels of every class.

    From the look at the masks that every run takes anyway; where the files lie is not in it.
    """
    facts = [[split, one.name, *one.shape, *one.counts.tolist()] for split, all_ in census.items() for one in all_]
    return blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
