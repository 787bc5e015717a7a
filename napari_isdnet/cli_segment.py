"""``napari-isdnet segment``: one image after the other, one sentence for each that fails."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import typer

from napari_isdnet.cli_output import drive, duration, print_error, print_json
from napari_isdnet.exceptions import InputError
from napari_isdnet.system import same_file


def segment_all(
    images: Sequence[Path], output: Path, model: str | None, settings: Mapping[str, Any], json: bool
) -> bool:
    """Segment every image into ``output``; True when all are done. ``settings`` goes to the engine as it is."""
    from napari_isdnet.io.open import stem_of

    images = _once(images)
    stems = {path: stem_of(Path(path.name or path.resolve().name)) for path in images}
    _check_stems(stems, images)
    _check_results(stems, output, settings)
    from napari_isdnet.engine.job import keep_memory_within
    from napari_isdnet.model.checkpoint import DEFAULT_MODEL, load_model

    keep_memory_within(settings.get("memory"))
    network = load_model(model if model is not None else DEFAULT_MODEL)
    done: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for path in images:
        try:
            result = _segment_one(path, output, network, settings)
        except InputError as error:
            if len(images) == 1:
                raise
            failed[str(path)] = str(error)
            # Many messages are about "the image": here one must say which.
            named = str(error).startswith((f"{path} ", f"{path.name} "))
            print_error(str(error) if named else f"{path}: {error}")
            continue
        done.append({"image": str(path), **result})
        if not json:
            _say(done[-1])
    if json:
        print_json(_summary(done, failed))
    return not failed


def _segment_one(path: Path, output: Path, network: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    from napari_isdnet.engine.job import picture_bytes
    from napari_isdnet.engine.segment import segment
    from napari_isdnet.io.open import open_source

    with closing(open_source(path, memory=picture_bytes(settings.get("memory")))) as source:
        steps = segment(source, network, output=output, **settings)
        result = drive(
            steps,
            source.name,
            f"Interrupted; windows that are finished, and maps on disk, are kept in {output / source.name}.job: run the"
            " same command again to go on (maps that were in memory are made anew).",
        )
    facts: dict[str, Any] = result.to_dict()
    return facts


def _once(images: Sequence[Path]) -> list[Path]:
    """Every file once, under the first of its spellings: shell patterns that overlap name files twice."""
    first: dict[str, Path] = {}
    for path in images:
        first.setdefault(same_file(os.path.abspath(path)), path)
    return list(first.values())


def _check_stems(stems: Mapping[Path, str], images: Sequence[Path]) -> None:
    """Results are named by stem, so two images with one stem would write over each other."""
    first: dict[str, Path] = {}
    for path in images:
        other = first.setdefault(same_file(stems[path]), path)
        if other is not path:
            raise typer.BadParameter(
                f"{other} and {path} have one name, '{stems[path]}', and would write the same result: "
                "rename one, or use another output folder for it.",
                param_hint="IMAGE...",
            )


def _check_results(stems: Mapping[Path, str], output: Path, settings: Mapping[str, Any]) -> None:
    """Two images may have one result: ``a_overlay.png`` is a picture of ``a.png``, and may be an image itself."""
    from napari_isdnet.engine.outputs import job_outputs

    kinds = [settings[key] for key in ("formats", "probabilities", "uncertainty", "polygons")]
    first: dict[str, Path] = {}
    for path, stem in stems.items():
        for _, _, target in job_outputs(output, stem, *kinds).values():
            other = first.setdefault(same_file(str(target)), path)
            if other is not path:
                raise typer.BadParameter(
                    f"{other} and {path} would both write {target.name}: rename one, or use another output folder"
                    " for it.",
                    param_hint="IMAGE...",
                )


def _say(facts: Mapping[str, Any]) -> None:
    print(
        f"{facts['image']}: {facts['pixels'] / 1e6:.1f} megapixels in {duration(facts['seconds'])}"
        f" ({facts['pixels_per_second'] / 1e6:.2f} per second, peak {facts['peak_rss_bytes'] / 2**30:.1f} GiB,"
        f" {facts['precision']} on {facts['device']}, {facts['context']} context)"
    )
    for path in facts["outputs"].values():
        print(f"  {path}")
    for warning in facts["warnings"]:
        print(f"  Note: {warning}")


def _summary(done: Sequence[Mapping[str, Any]], failed: Mapping[str, str]) -> dict[str, Any]:
    """Figures over all images, each one's own in ``images``, and what ``failed`` with the reason.

    ``outputs`` of one image are a mapping by kind, those of several a list.
    """
    own = {"images": list(done), "failed": dict(failed)}
    if len(done) == 1 and not failed:
        return {**done[0], **own}
    pixels, seconds = sum(f["pixels"] for f in done), sum(f["seconds"] for f in done)
    shared = {key: done[0][key] for key in ("device", "precision", "context")} if done else {}
    return {
        "outputs": [path for facts in done for path in facts["outputs"].values()],
        "pixels": pixels,
        "seconds": seconds,
        "pixels_per_second": pixels / seconds if seconds else 0.0,
        "peak_rss_bytes": max((f["peak_rss_bytes"] for f in done), default=0),
        **shared,
        **own,
    }
