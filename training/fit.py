"""Training as a generator: it yields progress after every step, and stopping to iterate is cancelling."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from napari_isdnet_training.census import MaskCensus, check_dataset, common_metres
from napari_isdnet_training.config import Recipe
from napari_isdnet_training.crops import CropDataset
from napari_isdnet_training.datasets import Dataset, Sample, open_dataset
from napari_isdnet_training.depthwise import faster_on_cpu
from napari_isdnet_training.evaluate import evaluate_samples, figures, score
from napari_isdnet_training.finished import CHECKPOINT, MODELS, FitResult, finished, stale
from napari_isdnet_training.history import History
from napari_isdnet_training.identity import data_digest, first_difference, fixed, up_to_date
from napari_isdnet_training.interrupts import Interrupts
from napari_isdnet_training.loading import Batches
from napari_isdnet_training.norms import prepare_norms
from napari_isdnet_training.processes import agree, connected, launched, refuse_others
from napari_isdnet_training.registry import Network
from napari_isdnet_training.sampling import CropSampler, StepBatches
from napari_isdnet_training.schedule import learning_rate
from napari_isdnet_training.setup import class_weights, make_fabric, make_network, make_optimizer
from napari_isdnet_training.sources import chosen_colors
from napari_isdnet_training.state import Average, RunState, load_state, read_state, save_state

from napari_isdnet.engine.device import device_memory
from napari_isdnet.engine.metrics import ConfusionMatrix
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.lock import alone
from napari_isdnet.model.auxiliary import labelled_weight
from napari_isdnet.model.checkpoint import save_model
from napari_isdnet.model.header import ModelHeader
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.progress import Clock, Progress, result_of

MORE_PARTS = "raise run.accumulate, which divides them, or lower run.batch or crop.size"
START_OVER = "and start over (--no-resume, or another --output), since a run that goes on keeps its settings"


def fit(
    recipe: Recipe, output: Path, *, resume: bool = True, network: Network | None = None
) -> Generator[Progress, None, FitResult]:
    """Train a recipe in ``output``, going on from the checkpoint there if there is one.

    Data is checked first: nothing is trained on a data set with a fault. Every step is yielded as :class:`Progress`
    with ``loss`` and ``lr``; closing the generator writes a checkpoint, from which a later call goes on with the same
    numbers as if it had never stopped; a validation that was due when it was closed comes first. Ctrl-C, in any of
    several processes, waits for the end of the step that is done, and is like closing; a second one ends it at once,
    and leaves the checkpoint that is there. A run that is finished gives its result at once, without a look at its
    data. Raises :class:`InputError` for bad data, a checkpoint of another recipe, a run of another process there, or
    numbers that are not finite any more, which leave the checkpoint as it was.
    """
    before = finished(recipe, output) if resume else None
    if before is not None:
        return before
    with ExitStack() as stack:
        run = Run(recipe, output, resume, network, stack)
        stack.callback(run.close)
        yield from run.steps()
    return run.result()


class Run:
    """One training run: its data, network, optimiser and files, which are no other process's until ``held`` ends."""

    def __init__(self, recipe: Recipe, output: Path, resume: bool, network: Network | None, held: ExitStack) -> None:
        self.recipe, self.output, options = recipe, output, recipe.run
        self.fabric = make_fabric(options)
        self.dataset, census = launched(self.fabric, options.nodes, partial(self._look, resume, held))
        samples = self.dataset.split("train")
        self.sampler = CropSampler(census["train"], recipe.crop, recipe.seed)
        self.metres = common_metres(census["train"])
        raw = options.finish_crops == "device"
        self.crops = CropDataset(
            samples, self.sampler, recipe.data, recipe.crop, recipe.augment, self.dataset.code, raw
        )
        torch.manual_seed(recipe.seed)
        self.network = network or make_network(recipe, self.dataset.classes)
        if self.fabric.device.type == "cpu":
            faster_on_cpu(self.network)
        if options.channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        prepare_norms(self.network, self.fabric.world_size, options.sync_batch_norm)
        self.weight = class_weights(recipe, self.sampler, self.fabric.device)
        optimizer = make_optimizer(self.network, recipe.optimizer)
        self.module, self.optimizer = self.fabric.setup(self.network, optimizer)
        self.average = Average(self.network, options.ema_decay) if options.ema_decay else None
        self.state = RunState(recipe=recipe.to_dict(), data=data_digest(census))
        self.checkpoint, self.saved = output / CHECKPOINT, (-1, -1)
        self.interrupts = Interrupts()
        self.whole = True  # False within a step, and while the network has other weights than its own
        self.history: History | None = None
        with self._shared():
            self._begin(resume)
        with self._shared():
            refuse_others(self.fabric, self.state.step, self.state.data, output)
        self._began = time.monotonic() - self.state.seconds

    def _look(self, resume: bool, held: ExitStack) -> tuple[Dataset, dict[str, list[MaskCensus]]]:
        """The data set and what its masks hold, without a fault, and the run's folder, for this run alone."""
        recipe = self.recipe
        dataset = open_dataset(recipe.data)
        if recipe.run.early_stop:
            dataset.split("validation")  # or say that nothing can stop it
        census = check_dataset(dataset, allow_empty_classes=recipe.data.allow_empty_classes)
        if self.fabric.is_global_zero:
            held.enter_context(alone(self.output, folder=True))
            if resume and finished(recipe, self.output) is not None:  # the other processes would end at once
                raise InputError(
                    f"{self.output} was finished by another process just now; start again to see its result."
                )
        return dataset, census

    def _begin(self, resume: bool) -> None:
        """Go on from the checkpoint, or take away what a run before left."""
        self.output.mkdir(parents=True, exist_ok=True)
        if resume and self.checkpoint.is_file():
            self._resume()
        if not self.fabric.is_global_zero:
            return
        if not resume:
            for name in (CHECKPOINT, *MODELS, "log.csv"):  # or a later call would take them for its own
                (self.output / name).unlink(missing_ok=True)
        self.history = History(self.output, self.state.step, self.recipe.run.tensorboard)

    def _resume(self) -> None:
        # The recipes first: tensors of another network are no damage.
        state = read_state(self.checkpoint)
        state.recipe = up_to_date(state.recipe)
        if fixed(state.recipe) != fixed(self.recipe.to_dict()):
            raise InputError(
                f"{self.output} holds a run of another recipe"
                f" ({first_difference(state.recipe, self.recipe.to_dict())});"
                " give another --output, or --no-resume to start over."
            )
        if state.data not in ("", self.state.data):
            raise InputError(
                f"{self.output} holds a run on other data: samples were added, left out or labelled anew since; give"
                " another --output, or --no-resume to start over."
            )
        load_state(self.checkpoint, self.network, self.optimizer.optimizer, self.average)
        state.data = self.state.data
        self.state, self.saved = state, (state.step, state.validated)

    @contextmanager
    def _shared(self) -> Iterator[None]:
        """Within, one of several processes may fail alone: all of them stop then, instead of waiting for it."""
        failure: InputError | None = None
        try:
            yield
        except InputError as error:
            failure = error
        agree(self.fabric, failure)

    def steps(self) -> Generator[Progress, None, None]:
        """Train to the last step, validating and saving on the way."""
        # Of several processes none leaves the others alone: see _together.
        held = self.interrupts.held() if self.fabric.world_size > 1 else nullcontext()
        with held, connected(self.fabric):
            yield from self._steps()

    def _together(self) -> None:
        """Several processes: raise :class:`KeyboardInterrupt` in all of them where a signal came to any."""
        if self.fabric.world_size > 1:
            came = self.fabric.all_reduce(torch.tensor(float(self.interrupts.came)), reduce_op="sum")
            if came > 0:  # type: ignore[operator]
                raise KeyboardInterrupt

    def _steps(self) -> Generator[Progress, None, None]:
        options = self.recipe.run
        clock = Clock(options.steps, self.state.step)
        numbers = StepBatches(
            self.state.step, options.steps, options.batch, options.accumulate, self.fabric.global_rank,
            self.fabric.world_size,
        )  # fmt: skip
        parts = Batches(self.crops, numbers, options, self.fabric.device)
        self.module.train()
        yield from self._validate_if_due(clock)  # the run may have been stopped before it was done
        while self.state.step < options.steps and not self._over():
            with self.interrupts.held():
                with device_memory(f"a step with {options.batch} crops", MORE_PARTS):
                    shown = self._step(parts)
                if self.state.step % options.log_every == 0:
                    self._log(shown)
            self._together()
            yield clock.step(1, "train", figures=shown)
            yield from self._validate_if_due(clock)
            if self.state.step % options.checkpoint_every == 0:
                with self._shared():
                    self._save()
        self._finish()

    def _validate_if_due(self, clock: Clock) -> Generator[Progress, None, None]:
        every, state = self.recipe.run.validate_every, self.state
        if every and state.step % every == 0 and state.validated < state.step:
            yield clock.step(0, "validate", figures=self._validate())

    def _over(self) -> bool:
        options, state = self.recipe.run, self.state
        late = options.max_seconds is not None and time.monotonic() - self._began > options.max_seconds
        if options.max_seconds is not None and self.fabric.world_size > 1:
            late = self.fabric.broadcast(late)  # clocks differ, and one process must not go on alone
        return late or stale(options, state)

    def _step(self, parts: Batches) -> dict[str, float]:
        step, options, recipe = self.state.step, self.recipe.run, self.recipe
        rate = learning_rate(step, options.steps, recipe.optimizer.lr, recipe.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        # A seed per step and process instead of a saved generator: dropout is the same after a resume.
        torch.manual_seed(recipe.seed * 1_000_003 + step * 1009 + self.fabric.global_rank)
        self.optimizer.zero_grad(set_to_none=True)
        if recipe.optimizer.frozen_steps:  # every step: an evaluation puts the whole network into training mode again
            self.network.freeze(step < recipe.optimizer.frozen_steps)
        sums: dict[str, float] = {}
        # All at hand before the first: what one of them weighs depends on how much is labelled in the others.
        with self._shared():
            batches = [next(parts) for _ in range(options.accumulate)]
        count = self._labelled([target for _, target in batches])
        self.whole = False  # whatever ends the step from here on: batch statistics of a part of it are no state to keep
        for part, (image, target) in enumerate(batches):
            if options.channels_last:
                image = image.to(memory_format=torch.channels_last)
            with self.fabric.no_backward_sync(self.module, enabled=part < options.accumulate - 1):
                losses = self.module(image, target, self.weight, count)
                self.fabric.backward(losses["total"] / options.accumulate)
            for key, value in losses.items():
                sums[key] = sums.get(key, 0.0) + float(value.detach()) / options.accumulate
        if self.fabric.world_size > 1:
            reduced = self.fabric.all_reduce(torch.tensor(list(sums.values())), reduce_op="mean")
            sums = dict(zip(sums, reduced.tolist()))  # type: ignore[union-attr]
        if not math.isfinite(sums["total"]):  # in all processes, as what follows in _clip
            reason = f"The loss is {sums['total']} at step {step}: training diverged; lower optimizer.lr {START_OVER}."
            agree(self.fabric, InputError(reason))
        if recipe.optimizer.clip_norm:
            self._clip(recipe.optimizer.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.network)
        self.state.step += 1
        self.whole = True
        return {"loss": sums.pop("total"), "lr": rate, **sums}

    def _labelled(self, targets: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Labelled pixels of the global batch (by class weight) for each of its parts; None where it is in one part.

        A part with few of them must not count as much as one that is labelled all over.
        """
        parts = len(targets) * self.fabric.world_size
        if parts == 1:
            return None
        count = torch.stack([labelled_weight(target, self.weight) for target in targets]).sum().float()
        if self.fabric.world_size > 1:
            count = self.fabric.all_reduce(count, reduce_op="sum")  # type: ignore[assignment]
        return count / parts

    def _evaluate(self, samples: Sequence[Sample]) -> Generator[Progress, None, ConfusionMatrix]:
        share = samples[self.fabric.global_rank :: self.fabric.world_size]
        steps = evaluate_samples(self.network, share, self.dataset, self.recipe.data)
        while not self.interrupts.came:
            try:
                yield next(steps)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
        return ConfusionMatrix(len(self.dataset.classes))  # of several processes, which end together now

    def _clip(self, limit: float) -> None:
        norm = self.fabric.clip_gradients(self.module, self.optimizer, max_norm=limit, error_if_nonfinite=False)
        # A finite loss can have such a gradient: seen with bfloat16 dilated depthwise convolutions in channels-last.
        if norm is not None and not bool(torch.isfinite(norm)):
            reason = (
                f"The gradient is not finite at step {self.state.step}; lower optimizer.lr, or try"
                f" run.precision=float32 or run.channels_last=false, {START_OVER}."
            )
            agree(self.fabric, InputError(reason))

    def _validate(self) -> dict[str, float]:
        samples = self.dataset.samples.get("validation", ())
        if not samples:
            self.state.validated = self.state.step
            return {}
        with self._averaged():
            with self._shared():
                matrix = result_of(self._evaluate(samples))
            self._together()
            if self.fabric.world_size > 1:
                counts = self.fabric.all_reduce(torch.from_numpy(matrix.counts), reduce_op="sum")
                matrix.counts[:] = counts.cpu().numpy()  # type: ignore[union-attr]
            self.state.figures = figures(matrix, self.dataset)
            reached = score(matrix)
            if reached > self.state.best:
                with self._shared(), self.interrupts.held():
                    self._write_model("best.safetensors")  # first: a run that is stopped here validates again
                    self.state.best, self.state.best_step = reached, self.state.step
        shown = {"miou": float(np.nan_to_num(matrix.mean_iou)), "accuracy": float(matrix.accuracy)}
        shown |= {f"iou_{c.name}": float(v) for c, v in zip(self.dataset.classes, matrix.iou) if not np.isnan(v)}
        self._log(shown)
        self.state.validated = self.state.step
        return shown

    def _log(self, figures: dict[str, float]) -> None:
        with self._shared():
            if self.history is not None:
                self.history.add(self.state.step, figures)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Within: the network has the averaged weights; afterwards its own again."""
        if self.average is None:
            yield
            return
        own = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.whole = False
        try:
            with self.interrupts.held():
                self.network.load_state_dict(self.average.values)
            yield
        finally:
            with self.interrupts.held():
                self.network.load_state_dict(own)
                self.whole = True

    def _finish(self) -> None:
        if self.recipe.run.validate_every and self.state.validated < self.state.step:
            self._validate()
        with self._shared(), self._averaged():
            self._write_model("model.safetensors")

    def _write_model(self, name: str) -> None:
        net = self.network.net
        if not self.fabric.is_global_zero or not isinstance(net, ISDNet):
            return
        data = self.recipe.data
        lineage = {"recipe": self.recipe.to_dict(), "seed": self.recipe.seed, "step": self.state.step}
        lineage |= {"data": self.dataset.name, "backbone": self.network.pretrained or "from scratch"}
        lineage["recipe"]["data"].pop("root", None)  # where the data lies is no fact about the model
        header = ModelHeader(
            config=net.config, classes=self.dataset.classes, name=self.recipe.name, mean=data.mean, std=data.std,
            description=self.recipe.description, licence=self.recipe.licence, window=max(self.recipe.crop.size),
            contrast=chosen_colors(data.contrast, data.channels), pixel_size=data.pixel_size or self.metres,
            lineage=lineage, figures={"validation": self.state.figures} if self.state.figures else {},
        )  # fmt: skip
        save_model(net, self.output / name, header, half=False)

    def _save(self) -> None:
        now = self.state.step, self.state.validated
        # Weights that are not finite must not replace the last good ones; the next step's loss says it.
        # At step 0 there is nothing to go on with, and its settings would stand in the way of corrected ones.
        changed = now != self.saved and self.state.step > 0
        if self.fabric.is_global_zero and changed and self.whole and self._finite():
            self.state.seconds = time.monotonic() - self._began
            save_state(self.checkpoint, self.state, self.network, self.optimizer.optimizer, self.average)
            self.saved = now

    def _finite(self) -> bool:
        return all(bool(torch.isfinite(p).all()) for p in self.network.parameters())

    def close(self) -> None:
        """Keep the whole steps that were done, unless one is in haste or the network was left within a step."""
        if not self.interrupts.urgent:
            self._save()
        if self.history is not None:
            self.history.close()

    def result(self) -> FitResult:
        """Paths and figures."""
        model, best = (self.output / name for name in MODELS)
        return FitResult(
            model if model.is_file() else None, best if best.is_file() else None, self.state.step, self.state.figures,
            self.network.pretrained or "from scratch",
        )  # fmt: skip
