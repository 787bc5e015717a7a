"""One fine-tuning run: its network, windows, checkpoints and the decision what is kept."""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from napari_isdnet_training.config import ScheduleConfig
from napari_isdnet_training.depthwise import faster_on_cpu
from napari_isdnet_training.interrupts import Interrupts
from napari_isdnet_training.judging import Guard, Tally, class_iou, mean_iou
from napari_isdnet_training.keeping import Keeping
from napari_isdnet_training.options import FineTuneOptions, FineTuneResult
from napari_isdnet_training.presets import BACKBONE, DEFAULT_WINDOW, FRESH_WINDOW, KEEP_WEIGHT
from napari_isdnet_training.schedule import learning_rate
from napari_isdnet_training.snapshot import Snapshot
from napari_isdnet_training.sources import chosen_colors
from napari_isdnet_training.starting import (
    choose_what_learns,
    last_layers_only,
    parameter_groups,
    set_mode,
    start_from,
)
from napari_isdnet_training.state import RunState, load_state, read_state, save_state
from napari_isdnet_training.strokecrops import Normaliser, StrokeCrops, check_taught, held_out
from napari_isdnet_training.unfinished import STATE, checkpoint_folder
from torch import Tensor

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.engine.device import choose, device_memory
from napari_isdnet.engine.enlarge import best_of
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import link_or_copy, remove, replacing
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.source import ImageSource
from napari_isdnet.model.checkpoint import load_model, save_model
from napari_isdnet.model.header import NEVER_TAUGHT, ModelHeader
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.model.phases import by_phases
from napari_isdnet.progress import Clock, Progress

WEIGHT_DECAY, CLIP_NORM = 0.01, 10.0
SAVE_SECONDS, SAVE_SHARE = 1.0, 0.1
"""A checkpoint at most every second, and never more than a tenth of the time."""
ANNOTATIONS, BEST, JUDGED = "annotations.bin", "best.safetensors", "judged.safetensors"
OWN_FILES = (STATE, ANNOTATIONS, BEST, JUDGED)
"""All that a checkpoint's folder holds; what holds anything else is not this package's to clear."""
SMALLER = "use a smaller --batch or --window, or --device cpu"
UNLABELLED = ("super_resolution", "distillation")


class Tuning:
    """One run; see :func:`napari_isdnet_training.finetune.finetune`."""

    def __init__(
        self,
        source: ImageSource,
        policy: IntensityPolicy,
        snapshot: Snapshot,
        options: FineTuneOptions,
        output: Path,
        resume: bool,
    ) -> None:
        self.source, self.snapshot, self.options, self.output = source, snapshot, options, output
        self.placement = choose(options.device, options.precision)
        painted = {c.name for c, pixels in zip(snapshot.classes, snapshot.class_counts(), strict=True) if pixels}
        self.start = start_from(options.model, snapshot.classes, options.seed, painted, snapshot.naming)
        self.network = self.start.network
        assert isinstance(self.network.net, ISDNet)
        self.net: ISDNet = self.network.net
        self.fixed_statistics = choose_what_learns(self.network, options.preset, self.start)
        self.last_only = last_layers_only(self.network, options.preset, self.start)  # no other loss reaches them
        if self.placement.device.type == "cpu":
            faster_on_cpu(self.network)
        self.network.to(self.placement.device)
        self.lr = options.adapt_lr if self.start.knows_all else options.lr
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.network, self.start), lr=self.lr, weight_decay=WEIGHT_DECAY
        )
        parent = self.start.parent
        self.keeping: Keeping | None = None
        if parent is not None:
            old, new = self.start.old, self.start.names
            self.keeping = Keeping(self.net if old == new else self._before(), old, new)
        header = parent or ModelHeader.default(self.net.config, classes=snapshot.classes, window=FRESH_WINDOW)
        self.mean, self.std = header.mean, header.std
        self.window = options.window or min(header.window, DEFAULT_WINDOW)
        self.pixels = Normaliser(source, policy, self.mean, self.std)
        windows = options.steps * options.batch
        self.crops = StrokeCrops(snapshot, self.pixels, self.window, options.seed, windows, options.spread)
        check_taught(snapshot, self.start.new_classes)
        self.folder = checkpoint_folder(output)
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.counts = Tally(len(snapshot.classes)).counts
        self.guard = Guard(self.counts)
        self.state = RunState(recipe=self._facts())
        self.saved, self.cost = -1, 0.0
        self.interrupts = Interrupts()
        self.whole = True  # False within a step
        self._open_folder(resume)
        self.saved_at = time.monotonic()

    def _facts(self) -> dict[str, Any]:
        """What must be the same for a run to go on: all that decides its weights, not which of them are taken."""
        facts = asdict(self.options) | {"model": self.start.hash, "annotation": self.snapshot.digest}
        del facts["allow_worse"]
        facts |= {"device": self.placement.device.type, "precision": self.placement.precision}
        facts |= {"channels": list(self.options.channels or ()), "contrast": str(self.options.contrast)}
        return facts | {"image": list(self.source.shape)}

    def _before(self) -> ISDNet:
        """The model that the run starts from, with its own classes."""
        before = load_model(self.options.model)
        if self.placement.device.type == "cpu":
            by_phases(before, least=3)
        return before.to(self.placement.device)

    def _open_folder(self, resume: bool) -> None:
        path = self.folder / STATE
        if resume and path.is_file():
            state = read_state(path)  # whose run it is, before its tensors, which fit no other network
            other = self._difference(state.recipe)
            if not other:
                self._go_on(state)
                return
            if not state.refused:
                raise InputError(
                    f"{self.folder} holds an unfinished run, but {other}; give another --output, or --no-resume to"
                    " start over."
                )
        remove(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.snapshot.save(self.folder / ANNOTATIONS)

    def _difference(self, recipe: dict[str, Any]) -> str:
        """What of a checkpoint's recipe is not as now, in words; '' where nothing is."""
        for key, value in self.state.recipe.items():
            if recipe.get(key) != value:
                return "the annotations changed" if key == "annotation" else f"'{key}' is another"
        return ""

    def _go_on(self, state: RunState) -> None:
        if self.judged and state.baseline is not None:  # before anything is in place: without it nothing may be kept
            self.guard = Guard.load(self.folder / JUDGED, len(self.snapshot.classes))
        load_state(self.folder / STATE, self.network, self.optimizer, None)
        self.before, self.after = state.figures.get("before", {}), state.figures.get("after", {})
        self.state, self.saved = state, state.step

    # -- training -----------------------------------------------------------------------------------------------------

    @property
    def judged(self) -> bool:
        """True when there are held-out regions."""
        return bool(self.snapshot.split.validation)

    def steps(self) -> Generator[Progress, None, None]:
        """Train to the last step, or until the held-out regions say again and again that it gets worse."""
        options = self.options
        clock = Clock(options.steps, self.state.step)
        if self.judged and self.state.baseline is None:
            self.before = self._validate()
            with self.interrupts.held():
                self.guard = Guard(self.counts)
                self.guard.save(self.folder / JUDGED)
                self.state.baseline = self.before["miou"]
                self._save(force=True)
            yield clock.step(0, "validate", figures=self.before)
        clock.resume()
        while True:
            if self._due():
                figures = self._judge()
                yield from clock.handing(clock.step(0, "validate", figures=figures))
            if self.state.step >= options.steps or self._stale():
                return
            with self.interrupts.held(), device_memory(f"a step with {options.batch} windows", SMALLER):
                shown = self._step()
            self._save()
            yield from clock.handing(clock.step(1, "train", figures=shown))

    def _due(self) -> bool:
        step = self.state.step
        at = step % self.options.validate_every == 0 or step == self.options.steps
        return self.judged and step > 0 and at and self.state.validated < step

    def _stale(self) -> bool:
        return self.judged and self.state.step - self.state.best_step >= (
            self.options.patience * self.options.validate_every
        )

    def _step(self) -> dict[str, float]:
        step, options, device = self.state.step, self.options, self.placement.device
        schedule = ScheduleConfig(warmup_steps=min(5, options.steps // 4))
        rate = learning_rate(step, options.steps, self.lr, schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        torch.manual_seed(options.seed * 1_000_003 + step * 1009)  # dropout is the same after a resume
        image, target = (t.to(device) for t in self.crops.batch(step, options.batch))
        self.whole = False  # batch statistics of a step that is not done are no state to keep
        set_mode(self.network, self.fixed_statistics)
        self.optimizer.zero_grad(set_to_none=True)
        mixed = self.placement.dtype != torch.float32
        with torch.autocast(device.type, self.placement.dtype, enabled=mixed):
            said: list[Tensor] = []
            trunk = None
            if self.last_only:
                with torch.no_grad():
                    trunk = self.net.trunk(image)
                found = self.net.last_losses(trunk, target, said)
            else:
                found = self.net.losses(image, target, said=said)
            losses = self._weighed(found, target)
            if self.keeping is not None and self.keeping.active:
                losses["keep"] = self.keeping.loss(said[0], image, target, trunk) * KEEP_WEIGHT
        total = torch.stack(list(losses.values())).sum()
        self._refuse_unless_finite(total, "loss")
        total.backward()
        learning = [p for p in self.network.parameters() if p.requires_grad]
        self._refuse_unless_finite(torch.nn.utils.clip_grad_norm_(learning, CLIP_NORM), "gradient")
        self.optimizer.step()
        self.state.step += 1
        self.whole = True
        return {"loss": float(total.detach()), "lr": rate, **{k: float(v.detach()) for k, v in losses.items()}}

    def _refuse_unless_finite(self, value: Tensor, name: str) -> None:
        """A finite loss can have a gradient that is not: both are looked at before anything is learnt from them."""
        if not bool(torch.isfinite(value)):
            raise InputError(
                f"The {name} is {float(value.detach())} at step {self.state.step}: training diverged; the last good"
                " model and checkpoint stay."
            )

    def _weighed(self, losses: dict[str, Tensor], target: Tensor) -> dict[str, Tensor]:
        """Segmentation losses as means over the labelled pixels, also where the published form divides by all."""
        factor = 1.0
        if self.net.config.flavour == "reference":
            labelled = int((target != IGNORE_INDEX).sum())
            factor = target.numel() / labelled if labelled else 0.0
        return {k: v if k in UNLABELLED else v * factor for k, v in losses.items() if k != "total"}

    # -- judging ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        self.network.eval()
        tally = Tally(len(self.snapshot.classes))
        for _, (image, target) in held_out(self.snapshot, self.pixels, self.window):
            with device_memory():
                labels = best_of(self.net(image.to(self.placement.device)).logits[0]).cpu().numpy()
            tally.add(labels, target[0].numpy().astype(np.uint8))
        self.counts = tally.counts
        total = self.counts.sum(axis=0)
        figures = {"miou": float(mean_iou(total))}
        for info, value in zip(self.snapshot.classes, class_iou(total), strict=True):
            if not np.isnan(value):
                figures[f"iou_{info.name}"] = float(value)
        return figures

    def _judge(self) -> dict[str, float]:
        """Validate, and keep the weights where the guard takes them."""
        figures = self._validate()
        with self.interrupts.held():
            self.state.validated = self.state.step
            taken = self.guard.takes(self.counts)
            self.guard.save(self.folder / JUDGED)
            if taken:
                self.state.best_step = self.state.step
                self._keep(figures)
            self._save(force=True)
        return figures | {"taken": float(taken)}

    def _keep(self, figures: dict[str, float]) -> None:
        """Write the weights beside the checkpoint, then let them appear as the output in one step."""
        self.after = dict(figures)
        best = self.folder / BEST
        save_model(self.net, best, self._header(), half=False)
        self._let_appear(best)

    def _let_appear(self, best: Path) -> None:
        with replacing(self.output, overwrite=True) as temporary:
            link_or_copy(best, temporary)

    def _header(self) -> ModelHeader:
        parent, options, snapshot = self.start.parent, self.options, self.snapshot
        ancestors = list(parent.lineage.get("ancestors", ())) if parent else []
        if parent:
            ancestors = [{"name": parent.name, "hash": self.start.hash}, *ancestors]
        lineage = {
            "parent": {"name": parent.name if parent else BACKBONE, "hash": self.start.hash},
            "ancestors": ancestors,
            "annotations": {
                "position": snapshot.position,
                "id": snapshot.id,
                "hash": snapshot.digest,
                "pixels": dict(zip((c.name for c in snapshot.classes), snapshot.class_counts(), strict=True)),
            },
            "image": self.source.name,
            "preset": options.preset,
            "step": self.state.step,
            "steps": options.steps,
            "batch": options.batch,
            "window": self.window,
            "spread": options.spread,
            "seed": options.seed,
            "device": self.placement.device.type,
            "precision": self.placement.precision,
            "backbone": self.network.pretrained or (parent.lineage.get("backbone") if parent else None),
        }
        if self.start.never_taught:  # a run that starts from this model must not take them for known
            lineage[NEVER_TAUGHT] = list(self.start.never_taught)
        metres = self.source.pixel_size.metres if self.source.pixel_size is not None else None
        return ModelHeader(
            config=self.net.config, classes=snapshot.classes, name=self.output.stem, mean=self.mean, std=self.std,
            contrast=chosen_colors(self.pixels.policy.contrast, self.pixels.policy.chosen_channels(self.source)),
            description=f"fine-tuned from {parent.name if parent else 'a pretrained backbone'} on {self.source.name}",
            pixel_size=metres or (parent.pixel_size if parent else None),
            window=parent.window if parent else self.window,
            licence=parent.licence if parent else "not stated", lineage=lineage,
            figures={"held_out_before": self.before, "held_out_after": self.after} if self.judged else {},
        )  # fmt: skip

    # -- keeping ------------------------------------------------------------------------------------------------------

    def _save(self, force: bool = False) -> None:
        since = time.monotonic() - self.saved_at if self.saved >= 0 else math.inf
        if not force and (self.saved == self.state.step or since < max(SAVE_SECONDS, self.cost / SAVE_SHARE)):
            return
        if not all(bool(torch.isfinite(t).all()) for t in self.network.state_dict().values()):
            return  # batch statistics, too: the last good ones are gone on with
        began = time.monotonic()
        self.state.figures = {"before": self.before, "after": self.after}
        save_state(self.folder / STATE, self.state, self.network, self.optimizer, None)
        self.saved, self.saved_at = self.state.step, time.monotonic()
        self.cost = self.saved_at - began

    def keep_last(self) -> None:
        """Cancelled: without held-out regions the last state is the best there is, so it becomes the output."""
        if not self.judged and self.state.step > 0:
            self._keep({})

    def close(self) -> None:
        """Keep the whole steps that were done, unless one is in haste or the network was left within a step."""
        if self.folder.is_dir() and self.saved != self.state.step and self.whole and not self.interrupts.urgent:
            self._save(force=True)

    def finish(self) -> FineTuneResult:
        """Publish what an interrupted run left unpublished, and clear the checkpoint.

        The checkpoint of a run that was refused stays: with ``allow_worse`` the same run takes its last weights.
        """
        if not self.judged:
            self._keep({})
        elif self.options.allow_worse and self.state.best_step != self.state.step:
            self._keep(self._validate())
            self.state.best_step = self.state.step
        if not (self.folder / BEST).is_file():
            self.state.refused = True
            self._save(force=True)
            return self._result(
                None,
                f"the held-out regions got worse than {self.state.baseline:.3f} mIoU, by more than chance, in"
                f" {self.state.step} steps: annotate more places, or allow a worse model",
            )
        if not self.output.is_file():
            self._let_appear(self.folder / BEST)
        remove(self.folder)
        alone = "each place painted holds a class that no other place holds, so none could be held out to judge by"
        return self._result(self.output, alone if self.snapshot.split.fraction > 0 and not self.judged else "")

    def _result(self, model: Path | None, reason: str) -> FineTuneResult:
        best = self.state.best_step if self.judged else self.state.step
        return FineTuneResult(model, self.state.step, best, self.before, self.after, self.start.new_classes, reason)
