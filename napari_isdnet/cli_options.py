"""Options of the command line: how each is written, read and refused. Imports nothing heavy."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from napari_isdnet.exceptions import InputError
from napari_isdnet.window import Window

T = TypeVar("T")


class Context(StrEnum):
    """What the network's global pooling sees."""

    whole = "whole"
    window = "window"


class Format(StrEnum):
    """File formats of a class map."""

    ome_zarr = "ome-zarr"
    ome_tiff = "ome-tiff"
    geotiff = "geotiff"
    png = "png"


class Precision(StrEnum):
    """Arithmetic of the network."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def parse_roi(text: str) -> Window:
    """``ROW,COL,HEIGHT,WIDTH`` in level-0 pixels."""
    parts = text.split(",")
    if len(parts) != 4 or not all(re.fullmatch(r" *\d+ *", part) for part in parts):
        raise typer.BadParameter(f"'{text}' must be ROW,COL,HEIGHT,WIDTH in whole pixels, such as 0,0,2048,2048.")
    row, column, height, width = (int(part) for part in parts)
    if height < 1 or width < 1:
        raise typer.BadParameter(f"'{text}' holds no pixel; HEIGHT and WIDTH must be at least 1.")
    return Window(row, column, height, width)


def parse_channels(text: str) -> tuple[int, ...]:
    """``0,1,2`` (red, green, blue) or one channel for a grey picture."""
    from napari_isdnet.io import intensity

    return _parsed(intensity.parse_channels, text)


def parse_contrast(text: str) -> str | tuple[float, float]:
    """``auto``, ``none`` or ``LOW,HIGH`` in the image's own values."""
    from napari_isdnet.io import intensity

    return _parsed(intensity.parse_contrast, text)


def _parsed(parse: Callable[[str], T], text: str) -> T:
    """What is typed, with the error of a command line."""
    try:
        return parse(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None


def parse_device(text: str) -> str:
    """``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise typer.BadParameter(f"'{text}' must be auto, cpu, cuda, cuda:N or mps.")
    return text


def parse_positive(text: str) -> float:
    """A finite number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(f"'{text}' must be a number above 0.")
    return value


def parse_orientations(text: str) -> int:
    """1, 2, 4 or 8."""
    if text not in ("1", "2", "4", "8"):
        raise typer.BadParameter(f"'{text}' must be 1, 2, 4 or 8 orientations of the image.")
    return int(text)


def parse_folder(text: str) -> Path:
    """A folder for results: there or to be made, so neither a file nor below one, and not left empty."""
    if not text.strip():
        raise typer.BadParameter("--output is empty; give a folder, or . for the current one.")
    from napari_isdnet.io.disk import check_folder

    try:
        check_folder(Path(text))
    except InputError as error:
        raise typer.BadParameter(str(error)) from None
    return Path(text)


def option(text: str, *names: str, **settings: Any) -> Any:
    """A typer option with its help text."""
    return typer.Option(*names, help=text, **settings)


ImageArgument = Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file or OME-Zarr folder, of any size.")]
ImagesArgument = Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files or OME-Zarr folders.")]
OutputOption = Annotated[
    Path, option("Folder for the results; made if missing.", "--output", "-o", parser=parse_folder, metavar="DIR")
]
ModelOption = Annotated[
    str | None, option("Name of a model (see 'models') or a .safetensors file.", "--model", "-m", metavar="NAME|FILE")
]
ReportOption = Annotated[
    Path | None, option("Folder for the report.", "--output", "-o", parser=parse_folder, metavar="DIR")
]
ProbabilitiesOption = Annotated[
    bool,
    option(
        "Write IMAGE_probabilities too, in the first --format (OME-Zarr for png): one channel a class,"
        " 0 to 254 for 0.0 to 1.0 (254 is sure), 255 where there is no data.",
        "--probabilities",
    ),
]
UncertaintyOption = Annotated[
    bool,
    option(
        "Write IMAGE_uncertainty too, in the first --format (OME-Zarr for png): entropy of the class"
        " probabilities, 0 to 254 for 0.0 to 1.0 (0 is sure, 254 all classes alike), 255 where there is no data.",
        "--uncertainty",
    ),
]
WindowOption = Annotated[
    int | None,
    option(
        "Side of a window in pixels; in 'whole' it changes speed and memory, and labels by rounding.",
        "--window",
        min=32,
    ),
]
ScaleOption = Annotated[
    Any,
    option(
        "Resample the image by this factor first; --roi counts the pixels of the result.",
        "--scale",
        parser=parse_positive,
        metavar="F",
    ),
]
OrientationsOption = Annotated[
    Any,
    option(
        "Average over so many turns and mirrors of the image (test-time augmentation): steadier, often better, and as"
        " many times the work.",
        "--orientations",
        parser=parse_orientations,
        metavar="1|2|4|8",
    ),
]
RoiOption = Annotated[
    Window | None,
    option(
        "Only this rectangle of pixels.",
        "--roi",
        parser=parse_roi,
        metavar="ROW,COL,HEIGHT,WIDTH",
    ),
]
DeviceOption = Annotated[
    str, option("Where to compute.", "--device", parser=parse_device, metavar="auto|cpu|cuda[:N]|mps")
]
SimplifyOption = Annotated[
    float,
    option(
        "Tolerance in pixels of the outlines of --polygons; 0 is every pixel corner, 2 takes the stairs away.",
        "--simplify",
        min=0,
    ),
]
MinAreaOption = Annotated[
    int,
    option(
        "Areas of fewer pixels become, in --polygons, a part of the neighbour that they share most border with.",
        "--min-area",
        min=1,
        metavar="PIXELS",
    ),
]
ContrastOption = Annotated[
    Any,
    option(
        "Intensity limits; auto stretches 16-bit and float images only.",
        "--contrast",
        parser=parse_contrast,
        metavar="auto|none|LOW,HIGH",
    ),
]
ChannelsOption = Annotated[
    Any,
    option("Channels that are red, green and blue, or one.", "--channels", parser=parse_channels, metavar="R,G,B"),
]
VectorLayerOption = Annotated[
    str | None, option("Layer of a file of outlines that has several.", "--layer", metavar="NAME")
]
AttributeOption = Annotated[
    str | None,
    option(
        "What holds the class of an outline; without it 'classification', 'class', 'class_name', 'label' or 'name'.",
        "--attribute",
        metavar="NAME",
    ),
]
JsonOption = Annotated[bool, option("Print one JSON object as the last line, also of an error.", "--json")]
