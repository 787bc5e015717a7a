"""``napari-isdnet annotation``: what the Annotate dock does with files, for a shell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from napari_isdnet import cli_options as options
from napari_isdnet.cli_output import print_facts, print_json, print_result

app = typer.Typer(
    help="What is painted of an image: look at it, fill it from files, export it, and ask where to paint next.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ImageArgument = Annotated[Path, typer.Argument(metavar="IMAGE", help="Annotated image, or its .isdnet folder.")]
Values = Literal["annotation", "mask"]
ReadValues = Literal["auto", "annotation", "mask"]
ValuesOption = Annotated[
    Values,
    options.option(
        "Label images: 'mask' (class indices with 255), or 'annotation' (0 unlabelled; *.tif and *.ome.tif only).",
        "--values",
        show_default=True,
    ),
]
ReadValuesOption = Annotated[
    ReadValues,
    options.option(
        "Label images: 'annotation' (0 unlabelled), 'mask' (class indices with 255), or 'auto': a mask where the file"
        " has class names, or 255 beside other classes; an annotation without a 0, or with 0 in more than half of it,"
        " where --classes does not speak against it; else it asks.",
        "--values",
        show_default=True,
    ),
]
MapOption = Annotated[
    bool, options.option("Outlines in the image's map coordinates (QGIS), not in its pixels (QuPath).", "--map")
]


@app.command()
def info(image: ImageArgument, json: options.JsonOption = False) -> None:
    """Classes, painted pixels of each, strokes, and the models that were trained with them."""
    from napari_isdnet.cli_painted import describe

    facts = describe(image)
    if json:
        print_json(facts)
        return
    rows = {c["name"]: f"{c['pixels']} pixels" for c in facts["classes"]}
    print_facts({**facts, "classes": rows, "models": {m["id"]: m["made"] for m in facts["models"]}})


@app.command("import")
def import_(
    image: ImageArgument,
    file: Annotated[
        Path, typer.Argument(help="GeoJSON, GeoPackage, Shapefile, ..., or a label image or pyramid of its size.")
    ],
    values: ReadValuesOption = "auto",
    default_class: Annotated[
        str, options.option("Class of shapes that name none.", "--class", metavar="NAME")
    ] = "imported",
    classes: Annotated[
        Path | None,
        options.option(
            "Classes of a new annotation, and names of a label image's classes in their order: JSON, or one per line.",
            "--classes",
            metavar="FILE",
        ),
    ] = None,
    layer: options.VectorLayerOption = None,
    attribute: options.AttributeOption = None,
    json: options.JsonOption = False,
) -> None:
    """Paint what a file holds, as one step to undo; an image without an annotation gets one."""
    from napari_isdnet.cli_painted import bring

    print_result(bring(image, file, values, default_class, classes, layer, attribute), json)


@app.command()
def export(
    image: ImageArgument,
    output: Annotated[
        Path,
        options.option("*.geojson, *.gpkg, *.tif, *.ome.tif, *.ome.zarr or *.png.", "--output", "-o", metavar="FILE"),
    ],
    values: ValuesOption = "mask",
    placed: MapOption = False,
    overwrite: Annotated[bool, options.option("Replace an existing file.", "--overwrite")] = False,
    json: options.JsonOption = False,
) -> None:
    """Write what is painted as outlines or as a label file."""
    from napari_isdnet.cli_painted import take_out

    print_result(take_out(image, output, values, placed, overwrite), json)


@app.command()
def repair(image: ImageArgument, json: options.JsonOption = False) -> None:
    """Make all that is painted anew from the journal of strokes, after damage to its files."""
    from napari_isdnet.cli_painted import mend

    print_result(mend(image), json)


@app.command()
def suggest(
    image: ImageArgument,
    uncertainty: Annotated[
        Path | None, options.option("Map that 'segment --uncertainty' wrote.", "--uncertainty", metavar="FILE")
    ] = None,
    hardest: Annotated[
        bool, options.option("The most unsure places first, also while little is painted.", "--hardest")
    ] = False,
    window: Annotated[int | None, options.option("Side of a place in pixels.", "--window", min=16)] = None,
    count: Annotated[int, options.option("How many places.", "--count", min=1, max=10_000)] = 12,
    output: Annotated[
        Path | None, options.option("GeoJSON or *.gpkg of the places too.", "--output", "-o", metavar="FILE")
    ] = None,
    placed: MapOption = False,
    overwrite: Annotated[bool, options.option("Replace an existing file.", "--overwrite")] = False,
    json: options.JsonOption = False,
) -> None:
    """Where to paint next: ordinary places first, unsure ones the more is painted, all far from one another."""
    from napari_isdnet.cli_painted import places, show_places

    found = places(image, uncertainty, hardest, window, count, output, placed, overwrite)
    if json:
        print_json({"places": found, "output": None if output is None else str(output)})
    else:
        show_places(found)
