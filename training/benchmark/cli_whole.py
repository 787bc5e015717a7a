"""``isdnet-train benchmark whole``, ``stages``, ``read`` and ``certain``: whole images, their parts, skipping work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from napari_isdnet_training.benchmark.cli import Device, _notes, _show

from napari_isdnet.cli_options import JsonOption
from napari_isdnet.cli_output import drive

Model = Annotated[str | None, typer.Option(help="Model; the default model if not given.")]
Core = Annotated[int | None, typer.Option(min=32, help="Streaming core; by default what --memory allows.")]
Memory = Annotated[float | None, typer.Option(metavar="GIB", help="Memory budget of the job.")]
Precision = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Output = Annotated[Path | None, typer.Option(help="CSV file.")]


def _finish(
    title: str, columns: tuple[str, ...], rows: list[dict[str, Any]], output: Path | None, as_json: bool
) -> None:
    """Write the rows where that was asked for, and show them."""
    from napari_isdnet_training.benchmark.output import write_csv

    if output is not None:
        write_csv(output, columns, rows, _notes())
    _show(title, columns, rows, as_json)


def whole_command(
    image: Annotated[Path, typer.Argument(help="Image; the network alone keeps its maps, 7 bytes a pixel, in RAM.")],
    model: Model = None,
    window: Core = None,
    memory: Memory = None,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 1,
    device: Device = "auto",
    precision: Precision = "auto",
    output: Output = None,
    as_json: JsonOption = False,
) -> None:
    """A whole image from file to label pyramid, beside the network alone on the same windows and one forward."""
    from napari_isdnet_training.benchmark.whole import WHOLE_COLUMNS, measure_whole

    from napari_isdnet.engine.job import keep_memory_within
    from napari_isdnet.model.checkpoint import DEFAULT_MODEL

    keep_memory_within(memory)  # as the command line of the job does
    steps = measure_whole(
        image, model or DEFAULT_MODEL, window=window, memory=memory, rounds=rounds, device=device,
        precision=precision,
    )  # fmt: skip
    rows = drive(steps, "whole", "Stopped; nothing was written.")
    _finish("Whole image", WHOLE_COLUMNS, rows, output, as_json)


def stages_command(
    image: Annotated[Path, typer.Argument(help="Image.")],
    model: Model = None,
    window: Core = None,
    memory: Memory = None,
    device: Device = "auto",
    precision: Precision = "auto",
    output: Output = None,
    as_json: JsonOption = False,
) -> None:
    """What bounds a whole image: seconds of decoding, copying, computing and writing, by thread."""
    from napari_isdnet_training.benchmark.stages import STAGE_COLUMNS, measure_stages

    from napari_isdnet.engine.job import keep_memory_within
    from napari_isdnet.model.checkpoint import DEFAULT_MODEL

    keep_memory_within(memory)  # as the command line of the job does
    steps = measure_stages(
        image, model or DEFAULT_MODEL, window=window, memory=memory, device=device, precision=precision
    )
    rows = drive(steps, "stages", "Stopped; nothing was written.")
    _finish("Stages", STAGE_COLUMNS, rows, output, as_json)


def read_command(
    image: Annotated[Path, typer.Argument(help="Tiled TIFF.")],
    window: Annotated[int, typer.Option(min=1, help="Side of the windows, in pixels.")] = 1024,
    windows: Annotated[int, typer.Option(min=1, help="Windows a thread and round.")] = 60,
    threads: Annotated[list[int] | None, typer.Option(min=1, help="Threads, repeatable; 1 and 2 by default.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Alternating rounds, after one that warms up.")] = 5,
    output: Output = None,
    as_json: JsonOption = False,
) -> None:
    """Random windows of a tiled TIFF, beside decoding the same tiles with nothing around it."""
    from napari_isdnet_training.benchmark.read import READ_COLUMNS, measure_reads

    steps = measure_reads(image, window=window, windows=windows, threads=threads or (1, 2), rounds=rounds)
    rows = drive(steps, "read", "Stopped; nothing was written.")
    _finish("Reading", READ_COLUMNS, rows, output, as_json)


def certain_command(
    image: Annotated[Path, typer.Argument(help="Image, which one forward must hold.")],
    mask: Annotated[Path, typer.Argument(help="Its truth: class indices, 255 ignored.")],
    model: Model = None,
    downscales: Annotated[
        list[int] | None, typer.Option("--downscale", min=2, help="Of the coarse pass, repeatable; 2 and 4 by default.")
    ] = None,
    shares: Annotated[
        list[float] | None, typer.Option("--skip", help="Percent skipped, repeatable; 10, 25 and 50 by default.")
    ] = None,
    device: Device = "auto",
    output: Output = None,
    as_json: JsonOption = False,
) -> None:
    """What is lost and saved where full-resolution work is skipped because a coarse prediction is certain."""
    from napari_isdnet_training.benchmark.certain import CERTAIN_COLUMNS, measure_certain

    from napari_isdnet.model.checkpoint import DEFAULT_MODEL

    steps = measure_certain(
        image, mask, model or DEFAULT_MODEL, downscales=downscales or (2, 4), shares=shares or (10, 25, 50),
        device=device,
    )  # fmt: skip
    rows = drive(steps, "certain", "Stopped; nothing was written.")
    _finish("Skipped where certain", CERTAIN_COLUMNS, rows, output, as_json)
