"""``isdnet-train benchmark``: speed, inference path, tables on a data set, and the annotation loop."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Annotated, Any

import typer
from napari_isdnet_training.presets import MOST_SPREAD, SPREAD

from napari_isdnet.cli_options import JsonOption
from napari_isdnet.cli_output import drive, print_json, print_table
from napari_isdnet.exceptions import InputError

app = typer.Typer(help="Measure networks: speed, accuracy, ablation, the annotation loop.", no_args_is_help=True)

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Sizes = Annotated[list[str] | None, typer.Option("--size", metavar="HxW", help="Image size, repeatable.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe.")]
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe: data, crops, optimiser of every run.")]
Steps = Annotated[int, typer.Option(min=1, help="Training steps of every run.")]
AGAIN = "Stopped; finished runs are in the file, run the same command to go on."


def _show(title: str, columns: tuple[str, ...], rows: list[dict[str, Any]], as_json: bool) -> None:
    def cell(value: Any) -> str:
        return "-" if value is None or value == "" else str(value)

    if as_json:
        print_json({"rows": rows})
    else:
        print_table(title, columns, [[cell(row.get(c)) for c in columns] for row in rows])


def _notes() -> list[str]:
    import torch
    from napari_isdnet_training.benchmark.output import typed_command

    return [typed_command(), f"{platform.machine()} {platform.system()}, torch {torch.__version__.split('+')[0]}"]


@app.command("speed")
def speed_command(
    networks: Annotated[list[str] | None, typer.Option("--network", help="Entry, repeatable; all by default.")] = None,
    sizes: Sizes = None,
    modes: Annotated[
        list[str] | None, typer.Option("--mode", help="whole, half, quarter, local, global; all by default.")
    ] = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    eager: Annotated[bool, typer.Option("--eager", help="Plain forwards: nothing folded, no channels last.")] = False,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds.")] = 3,
    repeats: Annotated[int, typer.Option(help="Images a round, after one that warms up.")] = 3,
    tile: Annotated[int, typer.Option(help="Tile of local and side of global inference.")] = 1024,
    overlap: Annotated[int, typer.Option(help="Overlap of tiles.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    seconds: Annotated[float, typer.Option(help="More than this an image did not fit.")] = 60.0,
    memory: Annotated[float, typer.Option(help="More than this many GiB did not fit.")] = 20.0,
    output: Annotated[
        Path | None, typer.Option(help="CSV file; beside it, NAME.rounds.csv keeps every round to go on from.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture (.png or .svg).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Images a second, latency, peak memory, parameters and multiply-adds of ISDNet and its baselines."""
    from napari_isdnet_training.benchmark.entries import MODES, choose_entries
    from napari_isdnet_training.benchmark.listed import LISTED, SCALE_NOTE, listed_rows
    from napari_isdnet_training.benchmark.output import check_picture, plot_speed, write_csv
    from napari_isdnet_training.benchmark.speed import COLUMNS, SIZES, SpeedOptions, parse_size, speed

    check_picture(plot)
    for mode in modes or ():
        if mode not in MODES:
            raise InputError(f"There is no mode '{mode}'; allowed are {', '.join(MODES)}.")
    options = SpeedOptions(
        sizes=tuple(parse_size(s) for s in sizes) if sizes else SIZES, device=device, precision=precision,
        prepared=not eager, rounds=rounds, repeats=repeats, tile=tile, overlap=overlap, threads=threads,
        seconds=seconds, memory=memory,
    )  # fmt: skip
    log = None if output is None else output.with_suffix(".rounds.csv")
    again = "nothing was written, since there is no --output" if log is None else f"finished rounds are in {log}"
    steps = speed(choose_entries(networks), options, modes or (), log, _notes())
    rows = drive(steps, "speed", f"Stopped; {again}{', run the same command to go on' if log else ''}.")
    listed = listed_rows(COLUMNS)
    if output is not None:
        write_csv(output, COLUMNS, [*rows, *listed], [*_notes(), SCALE_NOTE])
    if plot is not None:
        plot_speed(rows, plot)
    if as_json:
        print_json({"rows": [*rows, *listed], "note": SCALE_NOTE})
        return
    _show("Speed, batch 1", tuple(c for c in COLUMNS if not c.startswith("published")), rows, False)
    for one in LISTED:
        typer.echo(one.line())
    typer.echo(SCALE_NOTE)


@app.command("path")
def path_command(
    model: Annotated[str | None, typer.Option(help="Model; by default the reference flavour, random weights.")] = None,
    image: Annotated[Path | None, typer.Option(help="Image (needs --model); noise by default.")] = None,
    size: Annotated[
        str, typer.Option(metavar="HxW", help="Size of the noise, or of the crop of --image.")
    ] = "1024x2048",
    device: Device = "auto",
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 5,
    compile_too: Annotated[bool, typer.Option("--compile", help="Measure torch.compile too.")] = False,
    tune: Annotated[bool, typer.Option("--tune", help="And with kernels tuned, which takes minutes once.")] = False,
    output: Annotated[Path | None, typer.Option(help="CSV file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What the inference path gains over the plain float32 forward, and how far the class maps agree."""
    import torch
    from napari_isdnet_training.benchmark.output import write_csv
    from napari_isdnet_training.benchmark.path import PATH_COLUMNS, measure_path, read_normalised
    from napari_isdnet_training.benchmark.speed import parse_size

    from napari_isdnet.model.checkpoint import load_model
    from napari_isdnet.model.config import ISDNetConfig
    from napari_isdnet.model.isdnet import ISDNet

    height, width = parse_size(size)
    torch.manual_seed(0)
    net = load_model(model) if model else ISDNet(ISDNetConfig.of("reference", 7).inference())
    x = torch.randn(1, 3, height, width)
    if image is not None:
        if net.header is None:
            raise InputError("--image needs --model: a network with random weights has no classes to agree on.")
        x = read_normalised(image, net.header, (height, width))
    steps = measure_path(net, x, device=device, rounds=rounds, compile_too=compile_too, tune=tune)
    rows = drive(steps, "path", "Stopped; nothing was written.")
    if output is not None:
        write_csv(output, PATH_COLUMNS, rows, _notes())
    _show("Inference path, batch 1", PATH_COLUMNS, rows, as_json)


def _keep_memory() -> None:
    from napari_isdnet.engine.device import keep_freed_memory

    keep_freed_memory()


@app.command("ablation")
def ablation_command(
    recipe: RecipeName,
    output: Annotated[Path, typer.Option(help="CSV file; finished runs in it are skipped.")],
    tables: Annotated[list[int] | None, typer.Option("--table", help="5, 6 or 7, repeatable; all by default.")] = None,
    steps: Steps = 400,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 to N - 1 for every variant.")] = 3,
    settings: Settings = None,
    runs: Annotated[Path | None, typer.Option(help="Folder of the runs (resumed when cut off).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Tables 5 (branches), 6 (fusion) and 7 (losses, residual input) of the paper on a data set."""
    from napari_isdnet_training.benchmark.ablation import ABLATION_COLUMNS, ablation, summary
    from napari_isdnet_training.config import load_recipe

    loaded = load_recipe(recipe, settings or ())
    generator = ablation(loaded, output, tables or (5, 6, 7), steps, seeds, runs, _notes())
    _keep_memory()
    rows = summary(drive(generator, "ablation", AGAIN))
    _show(f"Ablation, {steps} steps", tuple(rows[0]) if rows else ABLATION_COLUMNS, rows, as_json)


@app.command("table")
def table_command(
    recipe: RecipeName,
    output: Annotated[Path, typer.Option(help="CSV file; finished runs in it are skipped.")],
    networks: Annotated[
        list[str] | None, typer.Option("--network", help="Registry network, repeatable; all installed by default.")
    ] = None,
    steps: Steps = 400,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 to N - 1.")] = 1,
    settings: Settings = None,
    runs: Annotated[Path | None, typer.Option(help="Folder of the runs (resumed when cut off).")] = None,
    speed: Annotated[bool, typer.Option(help="Measure speed and memory too; not beside other work.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Registry networks trained with one budget on the same data: IoU per class, mIoU, speed, parameters."""
    from napari_isdnet_training.benchmark.table import table, table_columns
    from napari_isdnet_training.config import load_recipe
    from napari_isdnet_training.registry import REGISTRY, available

    loaded = load_recipe(recipe, settings or ())
    for name in REGISTRY.keys() - available() if not networks else ():
        typer.echo(f"{name} is left out: the extra 'baselines' is not installed.", err=True)
    generator = table(loaded, output, networks or available(), steps, seeds, runs, _notes(), speed)
    _keep_memory()
    rows = drive(generator, "table", AGAIN)
    _show(f"{steps} steps", table_columns(loaded), rows, as_json)


@app.command("features")
def features_command(
    recipe: RecipeName,
    output: Annotated[Path, typer.Option(help="CSV file; finished rows in it are skipped.")],
    backbone: Annotated[str, typer.Option(help="timm backbone.")] = "tf_efficientnet_lite0",
    downscales: Annotated[
        list[int] | None, typer.Option("--downscale", help="1, 2, 4 or 8, repeatable; 1, 2 and 4 by default.")
    ] = None,
    crops: Annotated[int, typer.Option(min=3, help="Training crops; a third as many judge.")] = 60,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 to N - 1.")] = 1,
    settings: Settings = None,
    as_json: JsonOption = False,
) -> None:
    """What a backbone's frozen stages know of the validation scenes, of the image at 1/1, 1/2 and 1/4."""
    from napari_isdnet_training.benchmark.features import feature_columns, features
    from napari_isdnet_training.config import load_recipe
    from napari_isdnet_training.datasets import open_dataset

    wrong = [d for d in downscales or () if d not in (1, 2, 4, 8)]
    if wrong:
        raise InputError(f"--downscale must be 1, 2, 4 or 8, got {wrong[0]}.")
    loaded = load_recipe(recipe, settings or ())
    rows = drive(features(loaded, backbone, output, downscales or (1, 2, 4), crops, seeds, _notes()), "features", AGAIN)
    _show("Frozen features", feature_columns(open_dataset(loaded.data)), rows, as_json)


@app.command("loop")
def loop_command(
    image: Annotated[Path, typer.Argument(help="Image.")],
    mask: Annotated[Path, typer.Argument(help="Its truth: class indices, 255 ignored.")],
    output: Annotated[Path, typer.Option(help="CSV file; finished rounds in it are skipped.")],
    model: Annotated[
        str | None, typer.Option(help="Model to start from, or 'backbone'; the default model if not given.")
    ] = None,
    classes: Annotated[list[str] | None, typer.Option("--class", help="With 'backbone': a class, in order.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of strokes.")] = 4,
    share: Annotated[float, typer.Option(help="Percent of the left half's pixels painted in all.")] = 0.1,
    steps: Annotated[int, typer.Option(min=1, help="Fine-tuning steps of a round.")] = 80,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 to N - 1.")] = 3,
    spread: Annotated[
        int, typer.Option(min=0, max=MOST_SPREAD, help="Side of superpixels of strokes; 0: none.")
    ] = SPREAD,
    places: Annotated[
        list[str] | None, typer.Option(help="suggested, random or hardest, repeatable; the first two by default.")
    ] = None,
    runs: Annotated[Path | None, typer.Option(help="Folder for annotations and models.")] = None,
    device: Device = "auto",
    plot: Annotated[Path | None, typer.Option(help="Picture of the curves (.png or .svg).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Strokes drawn in the left half as a person would, at suggested or random places; the right half is measured."""
    from napari_isdnet_training.benchmark.curves import plot_loop
    from napari_isdnet_training.benchmark.loop import LOOP_COLUMNS, PLACES, LoopOptions, loop
    from napari_isdnet_training.benchmark.output import check_picture

    from napari_isdnet.classes import classes_from

    check_picture(plot)
    options = LoopOptions(
        rounds, share / 100, steps, seeds, spread=spread, device=device, places=tuple(places or PLACES[:2])
    )
    _keep_memory()
    named = classes_from(classes) if classes else ()
    rows = drive(loop(image, mask, output, model, options, runs, _notes(), named), "loop", AGAIN)
    if plot is not None:
        plot_loop(rows, plot)
    _show("mIoU of the right half", LOOP_COLUMNS, rows, as_json)
