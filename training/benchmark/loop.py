"""The annotation loop, measured: strokes in the left half of a scene, mIoU of the right half, which nobody paints."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from napari_isdnet_training.benchmark.output import RunLog, alone_at
from napari_isdnet_training.benchmark.runs import digest
from napari_isdnet_training.benchmark.strokes import paint_at, painted
from napari_isdnet_training.finetune import finetune
from napari_isdnet_training.presets import BACKBONE, SPREAD
from napari_isdnet_training.sources import MaskCode, colors_of, normalised, open_mask, read_mask
from napari_isdnet_training.starting import model_classes
from napari_isdnet_training.unfinished import checkpoint_folder

from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.suggest import TRUST_FROM, next_regions
from napari_isdnet.classes import IGNORE_INDEX, ClassInfo
from napari_isdnet.engine.device import choose
from napari_isdnet.engine.metrics import ConfusionMatrix
from napari_isdnet.exceptions import InputError, NothingToLearn
from napari_isdnet.io.disk import remove, replacing
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.open import open_source
from napari_isdnet.model.checkpoint import DEFAULT_MODEL, load_model, model_hash
from napari_isdnet.model.header import IMAGENET_MEAN
from napari_isdnet.progress import Clock, Progress
from napari_isdnet.window import Grid, Window

LOOP_COLUMNS = (
    "places", "seed", "round", "strokes", "painted", "share_percent", "miou_right", "seconds", "steps", "spread",
    "setting",
)  # fmt: skip
PLACES = ("suggested", "random", "hardest")
"""``hardest``: the most uncertain first, however little is painted."""


@dataclass(frozen=True)
class LoopOptions:
    """``share`` of the left half's pixels is painted over ``rounds``; ``steps`` of fine-tuning follow each round.

    ``spread``: see :func:`napari_isdnet_training.finetune.finetune`.
    """

    rounds: int = 4
    share: float = 0.001
    steps: int = 80
    seeds: int = 3
    window: int = 192
    spread: int = SPREAD
    device: str = "auto"
    places: tuple[str, ...] = PLACES[:2]

    def __post_init__(self) -> None:
        for name in self.places:
            if name not in PLACES:
                raise InputError(f"There are no places '{name}'; known are {', '.join(PLACES)}.")
        if not 0 < self.share <= 0.5:
            raise InputError(f"The share must be above 0 and at most 50 percent, got {self.share * 100:g}.")


class Scene:
    """Image, truth and halves of one scene, held in memory."""

    def __init__(self, image: Path, mask: Path, model: str, device: str, classes: Sequence[ClassInfo] = ()) -> None:
        self.path, self.device = image, device
        self.classes = tuple(classes) if model == BACKBONE else model_classes(model)
        if not self.classes:
            raise InputError("A backbone has no classes of its own; name those of the mask in order with --class.")
        code = MaskCode(names=tuple(info.name for info in self.classes))
        source, drawn = open_source(image), open_mask(mask, code)
        try:
            if source.shape != drawn.shape:
                raise InputError(
                    f"{mask.name} is {drawn.shape}, {image.name} {source.shape}; give the image's own mask."
                )
            whole = Window.whole(source.shape)
            self.pixels, valid = colors_of(IntensityPolicy.from_source(source), source.read(whole), IMAGENET_MEAN)
            self.truth = read_mask(drawn, whole, code, mask.name)
            if valid is not None:
                self.truth[~valid] = IGNORE_INDEX
        finally:
            source.close()
            drawn.close()
        self.shape = (whole.height, whole.width)
        self.left = Window(0, 0, whole.height, whole.width // 2)
        self.right = Window(0, self.left.width, whole.height, whole.width - self.left.width)

    def setting(self, model: str, options: LoopOptions) -> str:
        """A short text that differs where the scene, the model or an option does that has no column of its own."""
        whole = blake2b(np.ascontiguousarray(self.pixels).data, digest_size=16)
        whole.update(np.ascontiguousarray(self.truth).data)
        facts = {k: getattr(options, k) for k in ("rounds", "share", "window", "device")}
        facts |= {"scene": whole.hexdigest(), "shape": self.shape, "classes": [c.name for c in self.classes]}
        return digest(facts | {"model": model if model == BACKBONE else model_hash(model)})

    @torch.inference_mode()
    def probabilities(self, model: str, downscale: int = 1) -> torch.Tensor:
        """Class probabilities (K, H, W) of a model, from one forward over the scene, shrunk by ``downscale`` before."""
        net = load_model(model).to(choose(self.device, "float32").device).eval()
        assert net.header is not None
        image = normalised(self.pixels, net.header.mean, net.header.std)[None].to(net.classifier.out.weight.device)
        if downscale > 1:
            image = F.interpolate(image, scale_factor=1 / downscale, mode="area")
        logits = net(image).logits
        if downscale > 1:
            logits = F.interpolate(logits, size=self.shape, mode="bilinear")
        return logits[0].softmax(0).cpu()

    def score(self, model: str) -> float | None:
        """mIoU of the right half; None of a backbone, which has no classes yet."""
        if model == BACKBONE:
            return None
        matrix = ConfusionMatrix(len(self.classes))
        labels = self.probabilities(model).argmax(0).to(torch.uint8).numpy()
        matrix.update(labels[self.right.slices], self.truth[self.right.slices])
        return round(float(matrix.mean_iou), 5)


@alone_at("output")
def loop(
    image: Path, mask: Path, output: Path, model: str | None, options: LoopOptions, runs: Path | None,
    notes: Sequence[str], classes: Sequence[ClassInfo] = (),
) -> Generator[Progress, None, list[dict[str, Any]]]:  # fmt: skip
    """Run the loop for every kind of places and every seed; rows (:data:`LOOP_COLUMNS`) go to ``output``.

    ``places`` is ``before`` (the model as it was), ``full`` (fine-tuned on the left half's whole mask, for the steps of
    one round) or one of :data:`PLACES`. Every round fine-tunes the first model on all strokes so far, since a chain
    of models drifts: measured, four rounds one after the other ended where they began (0.466 for random places) where
    one on the same strokes gave 0.482. Suggestions are the latest model's. A fine-tuning that was refused by its own
    guard leaves the model as it was. Rounds that are in ``output`` are skipped; those of another scene, model or
    options are other rows. With ``model="backbone"`` it begins with ImageNet weights and ``classes``; the first places
    are then random either way.
    """
    start = model or DEFAULT_MODEL
    scene = Scene(image, mask, start, options.device, classes)
    log = RunLog(output, LOOP_COLUMNS, ("places", "seed", "round", "steps", "spread", "setting"), notes)
    common = {"steps": options.steps, "setting": scene.setting(start, options)}
    # What is painted for one setting and number of steps must not count for another.
    folder = (runs or output.with_suffix(".runs")) / f"{common['setting']}-{options.steps}"
    folder.mkdir(parents=True, exist_ok=True)
    clock = Clock(1 + options.seeds * (1 + len(options.places) * options.rounds))
    if start != BACKBONE and not log.done(places="before", spread="", **common):
        log.add({"places": "before", "miou_right": scene.score(start), **common})
    yield clock.step(1, "before")
    run = _Loop(scene, start, options, folder, log, common, clock)
    for seed in range(options.seeds):
        yield from run.full(seed)
        for places in options.places:
            yield from run.rounds(places, seed)
    mine = [row for row in log.rows if all(row[k] == str(v) for k, v in common.items())]
    return [row for row in mine if row["spread"] in ("", str(options.spread))]


@dataclass
class _Loop:
    """One setting of the loop: its scene, first model and options, and where its rows and models go."""

    scene: Scene
    start: str
    options: LoopOptions
    folder: Path
    log: RunLog
    common: dict[str, Any]
    clock: Clock

    def full(self, seed: int) -> Generator[Progress, None, None]:
        """Fine-tune on the whole mask of the left half."""
        scene, before = self.scene, self.clock.done
        key = {"places": "full", "seed": seed, "round": self.options.rounds, "spread": "", **self.common}
        known = self.log.done(**key)
        if not known:
            began = time.monotonic()
            path = self.folder / "left-half.tif"
            _write_left(scene, path)
            output = self.folder / f"full-{seed}.safetensors"
            model = yield from self._tune(path, output, seed, values="mask", classes=scene.classes)
            area = scene.truth[scene.left.slices]
            self.log.add({
                **key, "painted": int((area != IGNORE_INDEX).sum()), "share_percent": 100.0,
                "miou_right": scene.score(model), "seconds": round(time.monotonic() - began, 1),
            })  # fmt: skip
        yield self.clock.reach(before + 1, f"full, seed {seed}", resumed=known)

    def rounds(self, places: str, seed: int) -> Generator[Progress, None, None]:
        """Paint at such places, and fine-tune, round by round."""
        scene, options = self.scene, self.options
        own = self.folder / f"{places}-{seed}-spread{options.spread}"
        model, earlier = self.start, 0
        for number in range(1, options.rounds + 1):
            before = self.clock.done
            key = {"places": places, "seed": seed, "round": number, "spread": options.spread, **self.common}
            output = own / f"round{number}.safetensors"
            known = self.log.find(**key)
            if known is not None:
                # A round whose model was refused went on with the one it started from.
                model, earlier = str(output) if output.is_file() else self.start, earlier + int(known["strokes"])
            else:
                began, area = time.monotonic(), scene.left.area
                budget = round(area * options.share * number / options.rounds)
                rng = np.random.default_rng((seed, number))
                with _annotation(own / "annotation", scene) as store:
                    where = _places(scene, store, places, model, options, rng)
                    paint_at(store, scene.truth, where, scene.left, budget, rng)
                    store.flush()
                    # Those that a run that was cut off has painted count too.
                    strokes = sum(store.journal.entry(n)["kind"] != "classes" for n in store.journal.done) - earlier
                    earlier += strokes
                    done = painted(store, scene.left)
                    model = yield from self._tune(store, output, seed, spread=options.spread)
                self.log.add({
                    **key, "strokes": strokes, "painted": done, "share_percent": round(100 * done / area, 4),
                    "miou_right": scene.score(model), "seconds": round(time.monotonic() - began, 1),
                })  # fmt: skip
            yield self.clock.reach(before + 1, f"{places}, seed {seed}, round {number}", resumed=known is not None)

    def _tune(self, annotations: Any, output: Path, seed: int, **more: Any) -> Generator[Progress, None, str]:
        """The model file after fine-tuning the first one; that one itself where the guard kept it."""
        run = finetune(
            self.scene.path, annotations, self.start, output=output, steps=self.options.steps, seed=seed,
            device=self.options.device, overwrite=True, **more,
        )  # fmt: skip
        before = self.clock.done
        try:
            while True:
                step = next(run)
                yield self.clock.reach(before + step.fraction, f"{output.stem}: {step.stage}", step.figures)
        except StopIteration as stop:
            if stop.value.model is None:
                remove(checkpoint_folder(output))  # kept for who would take the weights all the same
                return self.start
            return str(stop.value.model)
        except NothingToLearn:
            return self.start  # the first few strokes all fell into held-out regions
        finally:
            run.close()


def _annotation(folder: Path, scene: Scene) -> AnnotationStore:
    if folder.is_dir():
        return AnnotationStore.open(folder)
    return AnnotationStore.create(folder, scene.shape, scene.classes)


def _write_left(scene: Scene, path: Path) -> None:
    import tifffile

    half = np.full(scene.shape, IGNORE_INDEX, np.uint8)
    half[scene.left.slices] = scene.truth[scene.left.slices]
    with replacing(path, overwrite=True) as temporary:
        tifffile.imwrite(temporary, half, compression="zlib")


def _places(
    scene: Scene, store: AnnotationStore, places: str, model: str, options: LoopOptions, rng: np.random.Generator
) -> list[Window]:
    """Windows of the left half in the order in which they are visited."""
    inside = [w for w in Grid(scene.shape, (options.window, options.window)) if scene.left.contains(w)]
    if places == "random" or model == BACKBONE:  # which has nothing to be unsure of yet
        return [inside[i] for i in rng.permutation(len(inside))]
    best = scene.probabilities(model).topk(min(2, len(scene.classes)), dim=0).values.numpy()
    unsure: npt.NDArray[np.float64] = 1 - (best[0] - best[1] if len(best) > 1 else best[0]).astype(np.float64)
    unsure[:, scene.left.width // options.window * options.window :] = np.nan  # the right half is measured only
    trust_from = 0.0 if places == "hardest" else TRUST_FROM
    found = next_regions(unsure, store, window=options.window, count=len(inside), trust_from=trust_from)
    return [s.window for s in found]
