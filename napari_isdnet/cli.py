"""The command ``napari-isdnet``. Heavy libraries are imported by the command that needs them, so help is instant."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import typer

import napari_isdnet
from napari_isdnet import cli_options as options
from napari_isdnet.cli_annotation import app as annotation_app
from napari_isdnet.cli_output import DONE, FAILED, INTERRUPTED, Interrupted, drive, print_json, print_result, report
from napari_isdnet.system import leave, typed_words

app = typer.Typer(
    help="Segment images of any size with ISDNet: exact, in bounded memory, resumable.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.add_typer(annotation_app, name="annotation")


def _version(asked: bool) -> None:
    if asked:
        print(f"napari-isdnet {napari_isdnet.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, options.option("Print the version.", "--version", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, options.option("Show the traceback of an error; may stand anywhere.", "--debug")] = False,
) -> None:
    """Options before the command."""


@app.command()
def demo(
    headless: Annotated[bool, options.option("Write files instead of opening napari.", "--headless")] = False,
    output: Annotated[
        Path | None,
        options.option(
            "New folder for the demo's image and results (default: ./napari-isdnet-demo).",
            "--output",
            "-o",
            metavar="DIR",
        ),
    ] = None,
    model: options.ModelOption = None,
    sample: Annotated[str, options.option("Landscape: desert-4k or aerial-4k.", "--sample")] = "desert-4k",
    json: options.JsonOption = False,
) -> None:
    """Make a landscape, segment it, and show it in napari (or write it with --headless)."""
    from napari_isdnet.cli_commands import run_demo

    run_demo(headless, output, model, sample, json)


@app.command()
def sample(
    name: Annotated[
        str | None, typer.Argument(help="Which sample; without it, they are listed.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, options.option("Folder to put it in (default: the cache folder).", "--output", "-o", metavar="DIR")
    ] = None,
    yes: Annotated[bool, options.option("Do not ask before large ones.", "--yes", "-y")] = False,
    overwrite: Annotated[bool, options.option("Get it again where it is there.", "--overwrite")] = False,
    json: options.JsonOption = False,
) -> None:
    """Write or download a picture to try things with: generated landscapes with truth, a photograph, a real slide."""
    from napari_isdnet.cli_commands import list_samples, run_sample

    if name is None:
        list_samples(output, json)
    else:
        print_result(run_sample(name, output, yes, overwrite), json)


@app.command()
def info(image: options.ImageArgument, json: options.JsonOption = False) -> None:
    """Say what an image file holds: size, levels, channels, pixel size, position."""
    from napari_isdnet.io.describe import describe
    from napari_isdnet.io.open import open_source

    source = open_source(image)
    try:
        print_result(describe(source), json)
    finally:
        source.close()


@app.command()
def segment(
    images: options.ImagesArgument,
    output: options.OutputOption,
    model: options.ModelOption = None,
    context: Annotated[
        options.Context, options.option("Global pooling over the whole image, or over each window alone.", "--context")
    ] = options.Context.whole,
    roi: options.RoiOption = None,
    window: options.WindowOption = None,
    format: Annotated[
        list[options.Format] | None,
        options.option("File format; may be repeated.", "--format", "-f", show_default="ome-zarr"),
    ] = None,
    polygons: Annotated[bool, options.option("Write class polygons as GeoJSON too.", "--polygons")] = False,
    geopackage: Annotated[
        bool, options.option("Write them as a GeoPackage too (QGIS, ArcGIS).", "--geopackage")
    ] = False,
    simplify: options.SimplifyOption = 0.0,
    min_area: options.MinAreaOption = 1,
    probabilities: options.ProbabilitiesOption = False,
    uncertainty: options.UncertaintyOption = False,
    device: options.DeviceOption = "auto",
    precision: Annotated[
        options.Precision, options.option("Arithmetic of the network.", "--precision")
    ] = options.Precision.auto,
    memory: Annotated[
        Any, options.option("Memory of the whole process.", "--memory", parser=options.parse_positive, metavar="GIB")
    ] = None,
    contrast: options.ContrastOption = "auto",
    channels: options.ChannelsOption = None,
    scale: options.ScaleOption = "1",
    orientations: options.OrientationsOption = "1",
    skip_bad_tiles: Annotated[
        bool, options.option("Nodata where the file is damaged, instead of an error.", "--skip-bad-tiles")
    ] = False,
    resume: Annotated[bool, options.option("Go on with what an earlier run has done.", "--resume/--no-resume")] = True,
    overwrite: Annotated[bool, options.option("Replace results of other settings.", "--overwrite")] = False,
    dask: Annotated[str | None, options.option("Compute on a Dask cluster.", "--dask", metavar="ADDRESS|local")] = None,
    json: options.JsonOption = False,
) -> None:
    """Write the class map of every IMAGE to the output folder, as files and as a job that can be resumed."""
    from napari_isdnet.cli_segment import segment_all

    for name, asked in (("--simplify", simplify > 0), ("--min-area", min_area > 1)):
        if asked and not polygons and not geopackage:
            raise typer.BadParameter("is about polygons: add --polygons or --geopackage.", param_hint=name)
    settings = {
        "context": context.value,
        "window": window,
        "roi": roi,
        "formats": tuple(item.value for item in format or [options.Format.ome_zarr]),
        "polygons": polygons,
        "geopackage": geopackage,
        "simplify": simplify,
        "min_area": min_area,
        "probabilities": probabilities,
        "uncertainty": uncertainty,
        "device": device,
        "precision": precision.value,
        "memory": memory,
        "contrast": contrast,
        "channels": channels,
        "scale": scale,
        "orientations": orientations,
        "skip_bad_tiles": skip_bad_tiles,
        "resume": resume,
        "overwrite": overwrite,
        "dask": dask,
    }
    if not segment_all(images, output, model, settings, json):
        raise typer.Exit(FAILED)


@app.command()
def evaluate(
    prediction: Annotated[Path, typer.Argument(help="Class map to judge.")],
    truth: Annotated[
        Path,
        typer.Argument(help="Class map that is right, folder of an annotation, or outlines (GeoPackage, ...)."),
    ],
    classes: Annotated[
        Path | None, options.option("Class names: JSON, or one per line.", "--classes", metavar="FILE")
    ] = None,
    ignore: Annotated[
        list[int] | None, options.option("Class index to leave out; may be repeated.", "--ignore", min=0, max=255)
    ] = None,
    tolerance: Annotated[float, options.option("Distance in pixels of the boundary F1.", "--tolerance", min=0)] = 3.0,
    image: Annotated[Path | None, options.option("Image to show in the report.", "--image", metavar="IMAGE")] = None,
    roi: options.RoiOption = None,
    output: options.ReportOption = None,
    layer: options.VectorLayerOption = None,
    attribute: options.AttributeOption = None,
    json: options.JsonOption = False,
) -> None:
    """Compare a class map with the truth: IoU, F1, boundary F1, confusion matrix, worst windows."""
    from napari_isdnet.annotation.files import check_meant, holds_outlines
    from napari_isdnet.cli_evaluation import painted_truth, print_evaluation
    from napari_isdnet.engine.evaluate import evaluate_files

    check_meant(truth, layer, attribute)
    with ExitStack() as stack:
        if truth.exists() and holds_outlines(truth):
            truth, classes = stack.enter_context(painted_truth(truth, prediction, classes, layer, attribute))
        steps = evaluate_files(prediction, truth, classes, ignore or (), output, image, tolerance, roi)
        result = drive(steps, prediction.name, "Interrupted; nothing was written, run the same command to start again.")
    if json:
        print_json(result.to_dict())
    else:
        print_evaluation(result)


@app.command()
def features(
    image: options.ImageArgument,
    output: options.OutputOption,
    model: options.ModelOption = None,
    roi: options.RoiOption = None,
    layer: Annotated[
        list[str] | None,
        options.option("shallow8, shallow16, deep, fused16, fused8, ...; may be repeated (default all).", "--layer"),
    ] = None,
    context: Annotated[
        options.Context, options.option("Maps as the whole image makes them, or each window alone.", "--context")
    ] = options.Context.whole,
    device: options.DeviceOption = "auto",
    contrast: options.ContrastOption = "auto",
    channels: options.ChannelsOption = None,
    overwrite: Annotated[bool, options.option("Replace maps that are there.", "--overwrite")] = False,
    json: options.JsonOption = False,
) -> None:
    """Write what the network's branches see: feature maps, attention vectors and relation matrices."""
    from napari_isdnet.cli_commands import run_features

    settings = {"context": context.value, "device": device, "contrast": contrast, "channels": channels}
    settings["overwrite"] = overwrite
    print_result(run_features(image, output, model, roi, tuple(layer or ()), settings), json)


@app.command()
def models(json: options.JsonOption = False) -> None:
    """List the models that can be named, with parameters and multiply-accumulates at 2448 x 2448."""
    from napari_isdnet.cli_models import model_rows, show_models

    rows = model_rows()
    if json:
        print_json({"models": rows})
    else:
        show_models(rows)


@app.command()
def convert(
    reference: Annotated[
        Path, typer.Argument(metavar="REFERENCE.pth", help="Checkpoint of the published implementation.")
    ],
    output: Annotated[Path, options.option("Model file to write (.safetensors).", "--output", "-o", metavar="FILE")],
    classes: Annotated[
        Path | None, options.option("Class names: JSON, or one per line.", "--classes", metavar="FILE")
    ] = None,
    half: Annotated[bool, options.option("Store weights as float16: half the size.", "--half")] = False,
    pixel_size: Annotated[
        Any,
        options.option(
            "Pixel size of the training images.", "--pixel-size", parser=options.parse_positive, metavar="METRES"
        ),
    ] = None,
    licence: Annotated[str, options.option("Licence note of the weights.", "--licence")] = "not stated",
    overwrite: Annotated[bool, options.option("Replace an existing file.", "--overwrite")] = False,
    json: options.JsonOption = False,
) -> None:
    """Turn a published checkpoint into a model file; code inside a checkpoint is refused, never run."""
    from napari_isdnet.cli_commands import run_convert

    print_result(run_convert(reference, output, classes, half, overwrite, pixel_size=pixel_size, licence=licence), json)


def run(application: typer.Typer, arguments: Sequence[str] | None, name: str) -> int:
    """Run a typer application the way every command of this package ends: one sentence per error, and an exit code."""
    arguments = typed_words() if arguments is None else list(arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    for stream in (sys.stdout, sys.stderr):  # a file's name may be no text of the terminal's encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    command = _command(application)
    try:
        code = command.main(arguments, prog_name=name, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        return report(error, debug, "--json" in arguments)
    if code == INTERRUPTED:
        return report(Interrupted("Interrupted; run the same command again."), False, "--json" in arguments)
    return code if isinstance(code, int) else DONE


@lru_cache(maxsize=4)
def _command(application: typer.Typer) -> Any:
    """The parser of an application, made once for who calls it again and again."""
    return typer.main.get_command(application)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``napari-isdnet``."""
    leave(run(app, arguments, "napari-isdnet"))
