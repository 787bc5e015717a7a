"""What the demo says in the terminal: what was done, how well, on what that was measured, and where to look."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from napari_isdnet.cli_output import duration
from napari_isdnet.system import shell_line

_ABOUT = {
    "overview": "the whole: image, truth, prediction, errors",
    "detail": "a region in the middle, not a chosen one",
    "overlay": "the prediction over the image",
}


def text_of(facts: Mapping[str, Any]) -> str:
    """The facts of :func:`napari_isdnet.demo_files.run_files` in plain lines."""
    done, (rows, columns) = facts["segment"], facts["pixels"]
    lines = [*facts["notes"], *([""] if facts["notes"] else [])]
    lines += [
        f"Segmented '{facts['sample']}', {rows} x {columns} pixels, as one image with {facts['model']}"
        f" in {duration(done['seconds'])}",
        f"({done['pixels_per_second'] / 1e6:.2f} megapixels per second, peak {done['peak_rss_bytes'] / 2**30:.1f} GiB,"
        f" {done['precision']} on {done['device']}).",
        "",
        *_figures(facts),
        *_region(facts["region"]),
        "",
        "Look at",
    ]
    paths = [(path, _ABOUT[name]) for name, path in facts["pictures"].items()]
    paths += [(facts["report"], "figures, every class, the worst windows")] if facts["report"] else []
    paths.append((facts["json"], "all figures as JSON"))
    width = max(len(path) for path, _ in paths)
    lines += [f"  {path:{width}}  {about}" for path, about in paths]
    return "\n".join([*lines, "", "Next", *(f"  {command}" for command in next_commands(facts))])


def _figures(facts: Mapping[str, Any]) -> list[str]:
    figures = facts["figures"]
    if figures is None:
        return []
    width = max(len(name) for name in figures["iou"])
    lines = [f"Against its truth ({facts['measured_on']}), intersection over union:"]
    lines += [f"  {name:{width}}  {_percent(value)}" for name, value in figures["iou"].items()]
    lines.append(
        f"  {'mean':{width}}  {_percent(figures['mean_iou'])}   accuracy {_percent(figures['accuracy']).strip()}"
    )
    lines.append("They are of a generated picture and no measure of the model on photographs;")
    real = facts["model_figures"].get("validation") or facts["model_figures"]
    mean = real.get("miou", real.get("mean_iou")) if isinstance(real, Mapping) else None
    if isinstance(mean, int | float):
        lines.append(
            f"for photographs that were kept out of its training, its file states a mean of {_percent(mean).strip()}."
        )
    else:
        lines.append("for those, its file states no figure.")
    return lines


def _percent(value: float | None) -> str:
    return "     -" if value is None else f"{100 * value:5.1f} %"


def _region(region: Mapping[str, Any]) -> list[str]:
    row, column, height, width = region["window"]
    differ, pixels = region["differing_pixels"], region["pixels"]
    return [
        "",
        f"Does the answer depend on where one looks? The {height} x {width} pixels at row {row}, column {column}:",
        f"  segmented as a region of the image      {differ['as_region']:,} of {pixels:,} pixels differ from the whole",
        f"  cut out and segmented as its own image  {differ['cut_out'] / pixels:.1%} of the pixels differ",
        "Cut out, the network lacks the rest of the image, which its pooling takes in: so is tiling an approximation.",
    ]


def next_commands(facts: Mapping[str, Any]) -> list[str]:
    """Commands that do parts of the demo by hand."""
    folder = Path(facts["folder"])
    image, truth = folder / f"{facts['sample']}.tif", folder / f"{facts['sample']}_truth.tif"
    result = folder / "result" / f"{facts['sample']}.ome.zarr"
    words: list[list[Any]] = [
        ["napari-isdnet", "info", image],
        ["napari-isdnet", "evaluate", result, truth, "--image", image, "--output", folder / "again"],
        ["napari-isdnet", "segment", "YOUR_IMAGE.tif", "--output", "results"],
    ]
    return [shell_line([str(word) for word in line]) for line in words]
