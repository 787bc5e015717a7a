"""Fine-tuning from annotations, as a generator: it yields progress after every step, and closing it is cancelling.

Guards: half of the windows replay strokes of any age; the model file is written only by a state that did not do worse
on the held-out regions, by more than chance explains, than the model it started from and than the run at its best;
training ends early where one state after the other does. Closing the generator loses nothing; killing the process
loses what is younger than the last checkpoint (a second, or ten times what writing one takes where that is more). The
run goes on from ``<output>.ckpt`` as if it had never stopped.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from napari_isdnet_training.labelled import Annotations, gather
from napari_isdnet_training.options import FineTuneOptions, FineTuneResult
from napari_isdnet_training.presets import BACKBONE, HELD_OUT, SPREAD
from napari_isdnet_training.starting import model_classes
from napari_isdnet_training.tuning import ANNOTATIONS, OWN_FILES, Tuning
from napari_isdnet_training.unfinished import STATE, checkpoint_folder, unfinished

from napari_isdnet.classes import ClassInfo
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.lock import alone
from napari_isdnet.io.open import open_source
from napari_isdnet.io.source import ImageSource
from napari_isdnet.model.checkpoint import SUFFIX, find_model
from napari_isdnet.progress import Progress


def finetune(
    image: str | os.PathLike[str] | ImageSource,
    annotations: Annotations,
    model: str | None = None,
    *,
    output: str | os.PathLike[str],
    preset: str = "quick",
    steps: int | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    values: str = "annotation",
    classes: tuple[ClassInfo, ...] = (),
    batch: int | None = None,
    window: int | None = None,
    contrast: Any = "auto",
    channels: tuple[int, ...] | None = None,
    held_out: float = HELD_OUT,
    spread: int = SPREAD,
    allow_worse: bool = False,
    resume: bool = True,
    overwrite: bool = False,
    layer: str | None = None,
    attribute: str | None = None,
) -> Generator[Progress, None, FineTuneResult]:
    """Train ``model`` further on what is annotated of ``image``; write the result to ``output``.

    Args:
        image: file or open source.
        annotations: project folder, annotation store, label image or pyramid of the same size, or outlines
            (GeoJSON, GeoPackage, Shapefile, ...).
        model: name or file; ``"backbone"`` starts from ImageNet weights with the annotation's classes; default: the
            shipped model.
        output: model file (``.safetensors``) to write; ``<output without suffix>.ckpt`` holds an unfinished run.
        preset: ``quick`` trains the last fusion and the classifier (context head and fusions too where the annotation
            has classes that the model has not), ``thorough`` everything, for longer.
        steps, batch, window: other than the preset's; ``window`` is the side of a training window in pixels.
        values: what pixels of a label image mean: ``annotation`` (0 = unlabelled), ``mask`` (255 = ignored) or
            ``auto`` (a mask where the file has class names or 255).
        classes: of a label image that does not name them (default: the model's).
        held_out: share of what is annotated that judges instead of teaching, by regions, 0 to below 1.
        spread: superpixels of about this side in pixels take the class of the thin stroke that lies in them; 0: strokes
            teach their own pixels only.
        allow_worse: write the last state even if the held-out regions got worse; of a run that was refused for that,
            the same call with it writes them without training again.
        resume: go on with an unfinished run of the same settings and annotations.
        overwrite: replace a finished ``output``.
        layer, attribute: of outlines, which of several layers is meant, and what holds the class.

    Yields :class:`Progress` with figures ``loss`` (and every part of it) of each step, and ``miou``, ``iou_<class>`` of
    each validation, with ``taken`` 1 where its weights were kept. The same annotations, settings and device give the
    same weights. The classes of the result are the annotation's; those that the model has go on by name. Raises
    :class:`InputError` for input that cannot be used, and where another process writes ``output``.
    """
    target = Path(output).expanduser()
    options = FineTuneOptions.of(
        model, preset, steps, batch, window=window, seed=seed, device=device, precision=precision, contrast=contrast,
        channels=channels, allow_worse=allow_worse, spread=spread,
    )  # fmt: skip
    with ExitStack() as stack:
        stack.enter_context(alone(target))
        _check_output(target, resume, overwrite, options.model)
        source = image if isinstance(image, ImageSource) else stack.enter_context(closing(open_source(image)))
        snapshot = yield from gather(
            annotations, source, values, classes or model_classes(options.model), held_out, layer, attribute
        )
        policy = IntensityPolicy.from_source(source, options.contrast, options.channels)
        with _deterministic():
            return (yield from _to_its_end(Tuning(source, policy, snapshot, options, target, resume)))


def _to_its_end(run: Tuning) -> Generator[Progress, None, FineTuneResult]:
    """All steps; of a run that is cancelled what is worth keeping is kept."""
    try:
        yield from run.steps()
    except GeneratorExit:
        run.keep_last()
        raise
    finally:
        run.close()
    return run.finish()


def _check_output(output: Path, resume: bool, overwrite: bool, model: str) -> None:
    if model != BACKBONE and output.resolve() == find_model(model).resolve():
        raise InputError(f"{output} is the model to start from, which must stay; choose another --output.")
    if output.suffix != SUFFIX:
        raise InputError(f"A model file must be named *{SUFFIX}, got '{output.name}'.")
    folder = checkpoint_folder(output)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if (folder.exists() and not folder.is_dir()) or not all(name.startswith((".", *OWN_FILES)) for name in names):
        raise InputError(
            f"{folder} would hold the unfinished run of {output.name}, but is something else; move it, or choose"
            " another --output."
        )
    state = unfinished(output)
    going_on = resume and (STATE in names or ANNOTATIONS in names) and not (state is not None and state.refused)
    if output.exists() and not going_on and not overwrite:
        raise InputError(f"{output} exists already; choose another --output, or add --overwrite.")


@contextmanager
def _deterministic() -> Iterator[None]:
    """Within: algorithms whose result does not change from run to run, where torch has them; restored afterwards.

    A few operations on a GPU have no such algorithm; they are used all the same.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts; without it matmuls vary
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
