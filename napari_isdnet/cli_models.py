"""``napari-isdnet models``: what can be given as --model, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from napari_isdnet.cli_output import print_error, print_table
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.units import length_text
from napari_isdnet.model.checkpoint import DEFAULT_MODEL, available_models, read_header
from napari_isdnet.model.config import PRESETS, ISDNetConfig
from napari_isdnet.model.cost import PAPER_SIZE, count_cost


def model_rows() -> list[dict[str, Any]]:
    """One JSON-ready row per model file, then one per configuration without trained weights."""
    rows = []
    for name, path in available_models().items():
        try:
            header = read_header(path)
        except InputError as error:
            # One bad file in the user's folder must not hide the good ones.
            print_error(str(error))
            continue
        facts = {
            "classes": [info.name for info in header.classes],
            "pixel_size": header.pixel_size,
            "licence": header.licence,
            "description": header.description,
            "path": str(path),
        }
        rows.append({"name": name, "trained": True, "default": name == DEFAULT_MODEL, **_cost(header.config), **facts})
    rows += [{"name": name, "trained": False, "default": False, **_cost(config)} for name, config in PRESETS.items()]
    return rows


def _cost(config: ISDNetConfig) -> dict[str, Any]:
    cost = count_cost(config)
    return {
        "flavour": config.flavour,
        "deep": config.deep,
        "num_classes": config.num_classes,
        "parameters": cost.parameters,
        "training_parameters": cost.training_parameters,
        "macs": cost.macs,
        "macs_size": list(cost.size),
    }


def show_models(rows: Sequence[dict[str, Any]]) -> None:
    """The rows as a table."""
    table = []
    for row in rows:
        state = "untrained configuration" if not row["trained"] else "default" if row["default"] else "trained"
        cells = (row["name"], state, row["flavour"], row["deep"], str(row["num_classes"]))
        size = "" if row.get("pixel_size") is None else length_text(row["pixel_size"])
        table.append(
            (*cells, f"{row['parameters'] / 1e6:.1f} M", f"{row['macs'] / 1e9:.0f} G", size, row.get("description", ""))
        )
    columns = ("name", "state", "flavour", "deep branch", "classes", "parameters", "MACs", "pixel", "")
    print_table(f"Models (multiply-accumulates at {PAPER_SIZE[0]} x {PAPER_SIZE[1]})", columns, table)
    if not any(row["trained"] for row in rows):
        print("No trained model is here yet: train one with 'isdnet-train fit' or convert one with 'convert'.")
