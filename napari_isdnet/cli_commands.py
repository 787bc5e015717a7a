"""The bodies of the smaller commands; each returns or prints JSON-ready facts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from napari_isdnet.cli_output import drive, print_json, print_table
from napari_isdnet.exceptions import InputError
from napari_isdnet.window import Window


def run_demo(headless: bool, output: Path | None, model: str | None, sample: str, json: bool) -> None:
    """The demo, in napari or as files; says what came of it when it is over."""
    from napari_isdnet.demo import demo, describe

    steps = demo(headless=headless, output=output, model=model, sample=sample)
    facts: Mapping[str, Any] = drive(steps, "demo", "Interrupted; run the demo again to start over.")
    if json:
        print_json(facts)
    else:
        print(describe(facts))


def run_features(
    image: Path,
    output: Path,
    model: str | None,
    roi: Window | None,
    layers: tuple[str, ...],
    settings: Mapping[str, Any],
) -> Mapping[str, Any]:
    """Feature maps of an image as files in ``output``."""
    from napari_isdnet.engine.feature_files import write_features
    from napari_isdnet.engine.job import picture_bytes
    from napari_isdnet.io.open import open_source
    from napari_isdnet.model.checkpoint import DEFAULT_MODEL, load_model

    # With the training-only heads, of which one gives the super-resolution output; a file without them has none.
    network = load_model(model if model is not None else DEFAULT_MODEL, training=True)
    with closing(open_source(image, memory=picture_bytes(settings.get("memory")))) as source:
        steps = write_features(source, network, output=output, roi=roi, layers=layers, **settings)
        facts: Mapping[str, Any] = drive(steps, source.name, "Interrupted; run the same command to start again.")
    return facts


def run_convert(
    reference: Path, output: Path, classes: Path | None, half: bool, overwrite: bool, **header: Any
) -> dict[str, Any]:
    """Convert a published checkpoint and say what came out."""
    from napari_isdnet.engine.labels import read_classes
    from napari_isdnet.model.checkpoint import model_hash
    from napari_isdnet.model.convert import convert

    if output.exists() and not overwrite:
        raise InputError(f"{output} exists; give another --output, or --overwrite to replace it.")
    result = convert(reference, output, None if classes is None else read_classes(classes), half, **header)
    return {
        "output": str(output),
        "flavour": result.flavour,
        "deep": result.config.deep,
        "classes": [info.name for info in result.classes],
        "bytes": output.stat().st_size,
        "model_hash": model_hash(output),
    }


def list_samples(folder: Path | None, json: bool) -> None:
    """Every sample, what getting it takes, and where it is if it was got before."""
    from napari_isdnet.io.sample_files import sample_files

    found = sample_files()
    if json:
        print_json({"samples": [_sample_facts(sample, folder) for sample in found]})
        return
    rows = [(s.name, s.title, s.about, s.cost(0 if s.ready(folder) else s.size)) for s in found]
    print_table("Samples; 'napari-isdnet sample NAME' gets one", ("name", "title", "what", "takes"), rows)


def run_sample(name: str, folder: Path | None, yes: bool, overwrite: bool) -> dict[str, Any]:
    """Get one sample, after asking where it is large; returns where it is."""
    import sys

    import typer

    from napari_isdnet.io.sample_files import ASK_FROM, find_sample_file

    sample = find_sample_file(name)
    if sample.ready(folder) and not overwrite:
        return _sample_facts(sample, folder)
    size = sample.bytes_to_come(folder, overwrite)
    if size >= ASK_FROM and not yes:
        if not sys.stdin.isatty():
            raise InputError(f"Sample '{name}' takes {sample.cost(size)}; add --yes to get it.")
        if not typer.confirm(f"{sample.title}: {sample.cost(size)}. Get it?", err=True):
            raise InputError("Nothing was fetched or written.")
    drive(sample.obtain(folder, overwrite), name, "Interrupted; nothing half-written was kept.")
    return _sample_facts(sample, folder)


def _sample_facts(sample: Any, folder: Path | None) -> dict[str, Any]:
    there = [str(path) for path in sample.paths(folder) if path.exists()]
    return {
        "name": sample.name, "title": sample.title, "about": sample.about, "bytes": sample.size,
        "url": None if sample.item is None else sample.item.url, "files": there,
    }  # fmt: skip
