"""``isdnet-train``: fit, fine-tune, evaluate, check, and what there is to choose from."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from napari_isdnet_training.benchmark.cli import app as benchmark_app
from napari_isdnet_training.benchmark.cli_whole import certain_command, read_command, stages_command, whole_command
from napari_isdnet_training.interrupts import follow
from napari_isdnet_training.presets import HELD_OUT, MOST_SPREAD, SPREAD, PresetName

from napari_isdnet.cli import run
from napari_isdnet.cli_options import (
    AttributeOption,
    ChannelsOption,
    ContrastOption,
    DeviceOption,
    JsonOption,
    OrientationsOption,
    Precision,
    VectorLayerOption,
)
from napari_isdnet.cli_output import FAILED, drive, print_error, print_result, print_table
from napari_isdnet.exceptions import InputError
from napari_isdnet.system import leave

app = typer.Typer(
    help="Train ISDNet and its baselines: fit, fine-tune, evaluate, check a data set.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

benchmark_app.command("whole")(whole_command)
benchmark_app.command("stages")(stages_command)
benchmark_app.command("read")(read_command)
benchmark_app.command("certain")(certain_command)
app.add_typer(benchmark_app, name="benchmark")

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe that ships, or a .toml file.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value, repeatable.")]
Values = Literal["auto", "annotation", "mask"]
SplitName = Literal["train", "validation", "test"]
FOLLOWS = 3.0
"""Seconds within which a process is sure to see that the one it follows has ended."""
NONE_VALIDATES = "No sample validates, so there are no figures and no best model; name some: data.validation=[...]."


@app.command()
def fit(
    recipe: RecipeName,
    output: Annotated[Path, typer.Option(help="Folder of the run: checkpoint, log.csv, models.")] = Path("run"),
    settings: Settings = None,
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Go on from the run in --output.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Train a recipe; run it again to go on where it was cut off."""
    from napari_isdnet_training.config import load_recipe
    from napari_isdnet_training.fit import fit as fit_recipe
    from napari_isdnet_training.processes import SaidByAnother, environment

    from napari_isdnet.engine.device import keep_freed_memory

    keep_freed_memory()
    loaded = load_recipe(recipe, settings or ())
    try:
        where = environment(loaded.run)
    except SaidByAnother:
        return  # with success, or whoever started it might end the one that says so before it has
    follows = where.local_rank() > 0  # the first process of its machine
    if follows:
        follow()
    steps = fit_recipe(loaded, output, resume=resume)
    if follows or where.node_rank() > 0:  # the first process of all does the talking
        _quietly(steps, follows)
        return
    result = drive(steps, loaded.name, "Stopped; run the same command to go on.")
    facts = {
        "start": result.start,
        "steps": result.steps,
        "model": str(result.model) if result.model else None,
        "best": str(result.best) if result.best else None,
        "validation": result.figures,
    }
    print_result(facts, as_json)
    if loaded.run.validate_every and not result.figures:
        typer.echo(NONE_VALIDATES, err=True)


@app.command()
def finetune(
    image: Annotated[Path, typer.Argument(help="Image that is annotated.")],
    annotations: Annotated[Path, typer.Argument(help="Project folder, label image or pyramid, or outlines.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Model file to write (.safetensors).")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="NAME|FILE", help="Start; 'backbone' for new classes.")
    ] = None,
    values: Annotated[
        Values,
        typer.Option(
            help="Label images: 'annotation' (0 unlabelled), 'mask' (class indices with 255), or 'auto': a mask where"
            " the file has class names or 255."
        ),
    ] = "auto",
    classes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Classes of a label image without names.")
    ] = None,
    layer: VectorLayerOption = None,
    attribute: AttributeOption = None,
    preset: Annotated[PresetName, typer.Option(help="quick: last layers only; thorough: everything.")] = "quick",
    steps: Annotated[int | None, typer.Option(min=1, help="Steps, instead of the preset's.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Windows of a step, instead of the preset's.")] = None,
    window: Annotated[int | None, typer.Option(min=64, help="Side of a training window in pixels.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same model.")] = 0,
    device: DeviceOption = "auto",
    precision: Annotated[Precision, typer.Option(help="Arithmetic of the network.")] = Precision.auto,
    held_out: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of what is painted that judges instead of teaching.")
    ] = HELD_OUT,
    spread: Annotated[
        int, typer.Option(min=0, max=MOST_SPREAD, help="Side of superpixels that thin strokes are taken to; 0: none.")
    ] = SPREAD,
    contrast: ContrastOption = "auto",
    channels: ChannelsOption = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; the same number gives the same bits.", show_default="all")
    ] = None,
    allow_worse: Annotated[
        bool, typer.Option("--allow-worse", help="Write it even if held-out regions surely got worse.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Go on with an unfinished run.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished model file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a model further on what is annotated of IMAGE; run it again to go on where it was cut off."""
    from napari_isdnet_training.finetune import finetune as run_finetune

    from napari_isdnet.engine.classlist import read_classes
    from napari_isdnet.engine.device import keep_freed_memory, set_threads

    set_threads(threads)
    keep_freed_memory()
    steps_of = run_finetune(
        image, annotations, model, output=output, preset=preset, steps=steps, seed=seed, device=device, values=values,
        precision=precision.value, classes=() if classes is None else read_classes(classes), batch=batch, window=window,
        held_out=held_out, spread=spread, contrast=contrast, channels=channels, allow_worse=allow_worse, resume=resume,
        overwrite=overwrite, layer=layer, attribute=attribute,
    )  # fmt: skip
    result = drive(steps_of, "finetune", "Stopped; run the same command to go on.")
    facts = result.to_dict()
    if result.model is None and not as_json:
        del facts["reason"]  # it is the error below; a program that reads JSON gets it there
    refusal = f"No model was written: {result.reason} (--allow-worse)."
    if result.model is None and as_json:
        facts |= {"error": refusal, "exit_code": FAILED}
    print_result(facts, as_json)
    if result.model is None:
        print_error(refusal)
        raise typer.Exit(FAILED)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Model name or file.")],
    recipe: RecipeName,
    split: Annotated[SplitName, typer.Option(help="Which samples of the recipe's data.")] = "validation",
    settings: Settings = None,
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
    orientations: OrientationsOption = "1",
    device: DeviceOption = "auto",
    precision: Annotated[Precision, typer.Option(help="Arithmetic of the network.")] = Precision.auto,
    as_json: JsonOption = False,
) -> None:
    """Figures of a model on the whole images of a recipe's split."""
    from napari_isdnet_training.config import load_recipe
    from napari_isdnet_training.datasets import open_dataset
    from napari_isdnet_training.evaluate import as_trained, evaluate_samples, figures
    from napari_isdnet_training.registry import Network

    from napari_isdnet.engine.device import choose, prepare
    from napari_isdnet.io.disk import make_folder, write_atomic
    from napari_isdnet.model.checkpoint import header_of, load_model

    placement = choose(device, precision.value)
    loaded = load_recipe(recipe, settings or ())
    dataset = open_dataset(loaded.data)
    net = load_model(model)
    data, note = as_trained(header_of(net), model, dataset, loaded.data)
    if note is not None:
        typer.echo(note, err=True)
    if output is not None:  # before the work, so that nothing is computed that cannot be written
        if output.is_dir():
            raise InputError(f"--output {output} is a folder; name the JSON file to write.")
        make_folder(output.parent)
    network = Network(model, prepare(net, placement), None)
    advice = "take smaller images, or use --device cpu"
    steps = evaluate_samples(network, dataset.split(split), dataset, data, orientations, advice)
    facts = figures(drive(steps, "evaluate", "Stopped; nothing was written."), dataset)
    facts |= {"device": str(placement.device), "precision": placement.precision}
    print_result(facts, as_json)
    if output is not None:
        write_atomic(output, (json.dumps(facts, indent=1) + "\n").encode())


@app.command()
def check(recipe: RecipeName, settings: Settings = None) -> None:
    """Look at every image and mask of a recipe, name each fault, and say how much of each class there is."""
    from napari_isdnet_training.census import examine
    from napari_isdnet_training.config import load_recipe
    from napari_isdnet_training.datasets import open_dataset

    data = load_recipe(recipe, settings or ()).data
    dataset = open_dataset(data)
    found = examine(dataset, allow_empty_classes=data.allow_empty_classes)
    shares = {split: counts / max(1, counts.sum()) for split, counts in found.counts.items()}
    rows = [(c.name, *(f"{share[k]:.2%}" for share in shares.values())) for k, c in enumerate(dataset.classes)]
    titles = (f"{split} ({len(dataset.samples[split])})" for split in shares)
    print_table(f"{dataset.name}: share of the labelled pixels", ("class", *titles), rows)
    for line in found.problems:
        typer.echo(line)
    if found.problems:
        count = len(found.problems)
        faults, lines, them = ("fault", "line", "it") if count == 1 else ("faults", "lines", "them")
        raise InputError(f"{count} {faults} of {dataset.name}; see the {lines} above, and mend {them}.")
    typer.echo("No fault.")
    if not dataset.samples.get("validation"):
        typer.echo(NONE_VALIDATES)


@app.command()
def fakes(
    layout: Annotated[str, typer.Argument(help="folder, scenes, deepglobe, inria or cityscapes.")],
    folder: Annotated[Path, typer.Argument(help="New or empty folder.")],
    side: Annotated[int, typer.Option(min=64, help="Height of an image in pixels.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same.")] = 0,
) -> None:
    """Write a tiny fake of a data layout, to try a recipe on."""
    from napari_isdnet_training.fakes import make_fake

    make_fake(layout, folder, side, seed)
    typer.echo(f"{folder}: a fake of layout '{layout}'.")


@app.command()
def recipes() -> None:
    """Recipes that ship."""
    from napari_isdnet_training.config import load_recipe, recipe_names

    for name in recipe_names():
        typer.echo(f"{name:32} {load_recipe(name).description}")


@app.command()
def networks() -> None:
    """Networks that a recipe can name."""
    from napari_isdnet_training.registry import REGISTRY

    for name, entry in REGISTRY.items():
        typer.echo(f"{name:24} {entry.description}{'' if entry.takes_weights else ' (no ImageNet weights)'}")


def _quietly(steps: Iterable[Any], follows: bool) -> None:
    """Take the part of a process that another one speaks for, on its machine if it ``follows``."""
    from napari_isdnet_training.processes import LostAnother, SaidByAnother

    try:
        deque(steps, maxlen=0)
    except (KeyboardInterrupt, SaidByAnother):
        if not follows:  # somebody may wait for a word there
            raise
        # Ends like a run that is done: after anything else, the launcher would kill the first process, which saves.
    except LostAnother:
        # A connection that broke because the first process was ended is no fault to speak of: this one ends with it.
        time.sleep(FOLLOWS * follows)
        raise


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    """Options before the command."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``isdnet-train``."""
    leave(run(app, arguments, "isdnet-train"))
