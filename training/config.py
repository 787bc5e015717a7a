"""Recipes: typed, immutable descriptions of one training run, read from TOML files.

A recipe names its data, crops, augmentation, network, losses, optimiser, schedule and run settings; nothing that
changes the numbers lives outside of it but the machine. ``extends = "other"`` starts from another recipe and changes
what is written; ``--set KEY=VALUE`` does the same from the command line, e.g. ``--set optimizer.lr=0.005``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from napari_isdnet.classes import ClassInfo, classes_from
from napari_isdnet.engine.classlist import read_classes
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.intensity import parse_contrast
from napari_isdnet.model.header import IMAGENET_MEAN, IMAGENET_STD

PositiveNumber = Annotated[float, Field(gt=0)]
MaskValue = Annotated[int, Field(ge=0, le=255)]


class _Part(BaseModel):
    # A number that is not finite says nothing good of any setting, and makes NaN of all that is trained.
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class DataConfig(_Part):
    """Where images and masks are, how they are split, and what the classes are called.

    ``train``, ``validation`` and ``test`` select samples by name, shell pattern or ``@FILE`` with one name a line;
    where only others are named, all that they leave train. What no selection at all means is said by each layout in
    :mod:`napari_isdnet_training.layouts`: for the public data sets it is ``split``: the lists that the paper uses, or
    for Inria the one that its authors suggest.

    ``classes``: names, each with a colour if wanted, or a file that lists them. ``values``, what the pixels of own
    masks hold: ``"mask"`` class indices with 255 ignored, ``"annotation"`` 0 for unlabelled and k + 1 for class k, or
    a list of what stands for each class, in their order (``[0, 255]``; 255 is ignored where it is not listed).
    ``channels`` and ``contrast`` (auto, none or ``"LOW,HIGH"``) are those of ``napari-isdnet segment``, and
    ``pixel_size`` is in metres, by default what the images say; the header of the model has all three.
    ``worlds`` generated landscapes of ``world_size`` pixels a side join the training samples.
    """

    layout: Literal["folder", "scenes", "deepglobe", "inria", "cityscapes"] = "folder"
    root: Path | None = None
    split: Literal["paper", "suggested"] = "paper"
    images: str = "images"
    masks: str = "masks"
    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    classes: tuple[Any, ...] = ()
    ignored_in_mean: tuple[str, ...] = ()
    values: Literal["mask", "annotation"] | tuple[MaskValue, ...] = "mask"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[PositiveNumber, PositiveNumber, PositiveNumber] = IMAGENET_STD
    channels: tuple[int, ...] | None = None
    contrast: str = "auto"
    pixel_size: float | None = Field(default=None, gt=0)
    allow_empty_classes: bool = False
    worlds: int = Field(default=0, ge=0, le=1000)
    world_size: int = Field(default=2048, ge=256, le=16384)

    @field_validator("classes", mode="before")
    @classmethod
    def _known_classes(cls, value: Any) -> tuple[ClassInfo, ...]:
        classes = read_classes(value) if isinstance(value, str) else classes_from(value) if value else ()
        if len(classes) == 1:
            raise ValueError("must name at least two classes")
        return classes

    @field_validator("contrast")
    @classmethod
    def _known_contrast(cls, value: str) -> str:
        try:
            parse_contrast(value)
        except InputError:
            raise ValueError("must be auto, none or LOW,HIGH with LOW below HIGH") from None
        return value

    @model_validator(mode="after")
    def _one_value_per_class(self) -> DataConfig:
        listed = () if isinstance(self.values, str) else self.values
        if listed and (len(set(listed)) < len(listed) or len(listed) != len(self.classes)):
            raise ValueError(f"values must be {len(self.classes)} different numbers, one per class, got {list(listed)}")
        return self


class CropConfig(_Part):
    """How training crops are drawn.

    ``images``: ``"epoch"`` visits every image once before any is seen again (the published sampler), ``"area"`` draws
    an image in proportion to its pixels. ``cat_max_ratio`` redraws a crop (at most ten times) while one class covers
    more than that share of its labelled pixels. ``rare_class_probability`` is the share of crops that are centred on a
    pixel of a class drawn with probability proportional to ``exp((1 - frequency) / rare_class_temperature)``;
    those are never redrawn. ``scale`` resizes by a factor drawn from that range (0.8 shows 1 / 0.8 as much of the
    scene).
    """

    size: tuple[int, int] = (512, 512)
    images: Literal["epoch", "area"] = "epoch"
    cat_max_ratio: float = Field(default=0.75, gt=0, le=1)
    rare_class_probability: float = Field(default=0.0, ge=0, le=1)
    rare_class_temperature: float = Field(default=0.1, gt=0)
    scale: tuple[float, float] = (1.0, 1.0)

    @model_validator(mode="after")
    def _sizes(self) -> CropConfig:
        if min(self.size) < 32:
            raise ValueError(f"size must be at least 32 x 32, got {self.size[0]} x {self.size[1]}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be two positive numbers in ascending order, got {list(self.scale)}")
        return self


class AugmentConfig(_Part):
    """Augmentation of a crop; every probability may be 0.

    ``quarter_turns`` rotates by 90, 180 or 270 degrees (lossless); ``rotate_degrees`` by any angle of that range
    (bilinear, outside becomes ``fill``, the mean colour or black, and is ignored), each with its own probability. The
    photometric part changes brightness, contrast, saturation and hue, each with probability one half.
    """

    flip_horizontal: float = Field(default=0.5, ge=0, le=1)
    flip_vertical: float = Field(default=0.0, ge=0, le=1)
    quarter_turns: float = Field(default=0.0, ge=0, le=1)
    rotate_probability: float = Field(default=0.0, ge=0, le=1)
    rotate_degrees: tuple[float, float] = (90.0, 270.0)
    fill: Literal["mean", "black"] = "mean"
    photometric: bool = True
    brightness: float = Field(default=32.0, ge=0, le=255)
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = Field(default=36.0, ge=0, le=180)

    @field_validator("contrast", "saturation")
    @classmethod
    def _factors(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] <= value[1]:
            raise ValueError(f"must be two factors of at least 0 in ascending order, got {list(value)}")
        return value


class ModelConfig(_Part):
    """A network of the registry (:mod:`napari_isdnet_training.registry`), its weights and its options.

    ``pretrained``: start the backbone from ImageNet weights. ``init``: a model file to start from instead.
    """

    name: str = "isdnet-lite0"
    pretrained: bool = True
    init: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)


class LossConfig(_Part):
    """Losses. ``class_weights``: ``"none"``, ``"inverse-sqrt"`` or one per class.

    ``"inverse-sqrt"`` is of the pixel frequency (below 1e-4 it counts as 1e-4), with a mean of 1 over the classes that
    the training masks hold; others have 1.
    """

    class_weights: Literal["none", "inverse-sqrt"] | tuple[float, ...] = "none"

    @field_validator("class_weights", mode="before")
    @classmethod
    def _weigh_something(cls, value: Any) -> Any:
        numbers = list(value) if isinstance(value, list | tuple) else []
        plain = all(isinstance(v, int | float) and 0 <= v < float("inf") for v in numbers)
        if numbers and not (plain and any(numbers)):
            raise ValueError(f"must be finite numbers of at least 0, not all of them 0, got {numbers}")
        return value


class OptimizerConfig(_Part):
    """Optimiser.

    ``momentum`` is for SGD; ``backbone_lr`` multiplies the rate of pretrained branches. For the first
    ``frozen_steps`` these stay as they are, their batch statistics too: what is new learns first, at a third of the
    cost, without spoiling what is known.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    decay_norms: bool = True
    backbone_lr: float = Field(default=1.0, ge=0)
    frozen_steps: int = Field(default=0, ge=0)
    clip_norm: float | None = Field(default=None, gt=0)


class ScheduleConfig(_Part):
    """Learning rate over the steps: ``poly`` to ``floor`` with ``power``, or constant; linear warm-up first."""

    policy: Literal["poly", "constant"] = "poly"
    power: float = Field(default=0.9, gt=0)
    floor: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)


class RunConfig(_Part):
    """Length, batch and machine. ``batch`` is the global batch: over all processes and accumulated parts.

    ``finish_crops``: where crops are resized, coloured and normalised, in the ``workers`` or, a batch at once, on the
    ``device``; the same to rounding, for a fifth of the workers' time. ``early_stop``: so many validations, each
    ``validate_every`` steps after the last, without a better one end the run; 0: none do.
    """

    steps: int = Field(default=1000, ge=1)
    batch: int = Field(default=8, ge=1)
    accumulate: int = Field(default=1, ge=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = False
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    sync_batch_norm: bool = True
    validate_every: int = Field(default=1000, ge=0)
    checkpoint_every: int = Field(default=500, ge=1)
    log_every: int = Field(default=10, ge=1)
    tensorboard: bool = False
    early_stop: int = Field(default=0, ge=0)
    max_seconds: float | None = Field(default=None, gt=0)
    workers: int = Field(default=0, ge=0)
    finish_crops: Literal["workers", "device"] = "workers"
    accelerator: str = "auto"
    devices: int = Field(default=1, ge=1)
    nodes: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        parts = self.accumulate * self.devices * self.nodes
        if self.batch % parts:
            raise ValueError(
                f"batch {self.batch} cannot be shared by accumulate x devices x nodes = {parts}; use a multiple of it"
            )
        if self.early_stop and not self.validate_every:
            raise ValueError("early_stop counts validations, and validate_every is 0; set it to some number of steps")
        return self


class Recipe(_Part):
    """One training run; ``description`` and ``licence`` go into the header of its model."""

    name: str
    description: str = ""
    licence: str = "not stated"
    seed: int = Field(default=0, ge=0, lt=2**32)
    data: DataConfig = DataConfig()
    crop: CropConfig = CropConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _one_weight_per_class(self) -> Recipe:
        weights, classes = self.loss.class_weights, self.data.classes
        if not isinstance(weights, str) and classes and len(weights) != len(classes):
            raise ValueError(f"loss.class_weights has {len(weights)} numbers for {len(classes)} classes")
        return self

    @model_validator(mode="after")
    def _frozen_in_one_process(self) -> Recipe:
        if self.optimizer.frozen_steps and self.run.devices * self.run.nodes > 1:
            raise ValueError("optimizer.frozen_steps is for one process; set it to 0, or use one device of one node")
        return self

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON-ready mapping (for logs, lineage and the check on resume)."""
        return self.model_dump(mode="json")


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("napari_isdnet_training") / "recipes"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def load_recipe(name_or_path: str | Path, settings: Iterable[str] = ()) -> Recipe:
    """Read a recipe by the name of one that ships or by path, with ``KEY=VALUE`` settings on top.

    Raises :class:`~napari_isdnet.exceptions.InputError` for a file that is missing or no TOML, an unknown key, or a
    value outside of what is allowed.
    """
    return recipe_from(_read_table(str(name_or_path), ()), settings, str(name_or_path))


def recipe_from(table: Mapping[str, Any], settings: Iterable[str] = (), label: str = "recipe") -> Recipe:
    """A recipe from a mapping (as TOML gives it), with ``KEY=VALUE`` settings on top."""
    merged = _merge({}, table)
    for setting in settings:
        merged = _merge(merged, _parse_setting(setting))
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        raise InputError(_one_sentence(error, label)) from None


def _read_table(name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    if name in seen:
        raise InputError(f"Recipe '{seen[0]}' extends itself ({' -> '.join((*seen, name))}); break the circle.")
    path = Path(name)
    shipped = resources.files("napari_isdnet_training") / "recipes" / f"{name}.toml"
    if path.suffix == ".toml" and path.is_file():
        text = _text(path)
    elif shipped.is_file():
        text = shipped.read_text(encoding="utf-8")
    else:
        raise InputError(f"There is no recipe '{name}'; give a .toml file that exists or one of {_listed()}.")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"Recipe '{name}' is no valid TOML ({error}); correct the file.") from None
    base = table.pop("extends", None)
    if base is None:
        return table
    beside = path.parent / f"{base}"
    target = str(beside) if str(base).endswith(".toml") and beside.is_file() else str(base)
    return _merge(_read_table(target, (*seen, name)), table)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text ({error}); save the recipe in UTF-8.") from None


def _listed() -> str:
    return ", ".join(recipe_names())


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = _merge({}, value) if isinstance(value, Mapping) else value
    return merged


def _parse_setting(setting: str) -> dict[str, Any]:
    key, equals, text = setting.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise InputError(f"A setting must look like KEY=VALUE with dots between parts of the key, got '{setting}'.")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word, such as a path
    for part in reversed(parts):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def _one_sentence(error: ValidationError, label: str) -> str:
    # Of a setting that takes words or a list: what is wrong with the list, where one was given.
    problem = min(error.errors(), key=lambda p: p["type"] == "literal_error" and not isinstance(p["input"], str))
    where = ".".join(str(p) for p in problem["loc"] if not (isinstance(p, str) and "[" in p)) or "the recipe"
    reason = problem["msg"].removeprefix("Value error, ").rstrip(".")
    if problem["type"] == "extra_forbidden":
        parent: Any = Recipe
        for part in problem["loc"][:-1]:
            parent = parent.model_fields[str(part)].annotation
        return f"Recipe '{label}' has an unknown key '{where}'; known there are {', '.join(parent.model_fields)}."
    if problem["type"] == "tuple_type":
        reason = 'must be a list in brackets, such as ["a", "b"] or [1, 2]'
    elif isinstance(problem["loc"][-1] if problem["loc"] else None, int) and problem["type"] == "missing":
        reason = "there are too few values"
    got = "" if isinstance(problem["input"], Mapping) else f", got {problem['input']!r}"
    return f"Recipe '{label}': {where}: {reason[:1].lower() + reason[1:]}{got if got not in reason else ''}."
