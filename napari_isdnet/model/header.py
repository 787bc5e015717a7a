"""The JSON header of a model file: everything but the weights that a prediction depends on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import napari_isdnet
from napari_isdnet.classes import ClassInfo, classes_from
from napari_isdnet.exceptions import InputError
from napari_isdnet.model.config import ISDNetConfig

FORMAT_VERSION = 1
METADATA_KEY = "napari_isdnet"
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
NEVER_TAUGHT = "never_taught"
"""Key of a header's lineage: names of classes that stand in the model's list and were painted in no run."""


@dataclass(frozen=True)
class ModelHeader:
    """What a model is, and how its input and output are to be read.

    ``mean`` and ``std`` normalise red, green and blue on the 0..255 scale. ``pixel_size`` is the pixel's side in
    metres at training, or None where it is unknown. ``window`` is the side in pixels of the windows the network was
    trained on, which is also the window of windowed inference. ``contrast`` holds how the samples of training became
    colours where that was chosen by hand: ``asked`` ('none' or 'LOW,HIGH') and, where chosen, ``channels``.
    ``lineage`` says where the weights come from (recipe, seed, data, parent), ``figures`` what was measured with them.
    """

    config: ISDNetConfig
    classes: tuple[ClassInfo, ...]
    name: str = "unnamed"
    description: str = ""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    pixel_size: float | None = None
    window: int = 1024
    contrast: Mapping[str, Any] | None = None
    licence: str = "not stated"
    version: str = napari_isdnet.__version__
    format_version: int = FORMAT_VERSION
    lineage: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.classes) != self.config.num_classes:
            raise InputError(
                f"A model of {self.config.num_classes} classes needs as many class names, got {len(self.classes)}."
            )
        _check_numbers(self)
        for key in ("contrast", "lineage", "figures"):
            value = getattr(self, key)
            if value is not None and not isinstance(value, Mapping):
                raise InputError(f"The model header's '{key}' must be a JSON object, got {type(value).__name__}.")

    @property
    def flavour(self) -> str:
        """``reference`` or ``paper``: whose side the network takes where the two differ."""
        return str(self.config.flavour)

    @property
    def contrast_options(self) -> str:
        """The options by which another image becomes colours as those of training did; '' where none was chosen."""
        chosen = self.contrast or {}
        parts = [f"--contrast {chosen['asked']}"] if chosen.get("asked") else []
        parts += [f"--channels {','.join(map(str, chosen['channels']))}"] if chosen.get("channels") else []
        return " ".join(parts)

    @classmethod
    def default(cls, config: ISDNetConfig, **values: Any) -> ModelHeader:
        """A header for ``config`` with numbered class names; ``values`` replaces any other field."""
        values.setdefault("classes", classes_from(f"class {index}" for index in range(config.num_classes)))
        return cls(config=config, **values)

    def to_json(self) -> str:
        """This header as one line of JSON."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data["config"] = self.config.to_dict()
        data["classes"] = [{"name": c.name, "color": list(c.color)} for c in self.classes]
        data["flavour"] = self.flavour
        data["contrast"] = None if self.contrast is None else dict(self.contrast)
        data["lineage"], data["figures"] = dict(self.lineage), dict(self.figures)
        try:
            return json.dumps(data, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"The model header must hold JSON values only ({error}); remove what is not.") from None

    @classmethod
    def from_json(cls, text: str) -> ModelHeader:
        """The header that :meth:`to_json` wrote.

        Raises:
            InputError: naming the first field that is missing, unknown or has a wrong value.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise InputError(f"The model header is not valid JSON ({error}); get the file again.") from None
        if not isinstance(data, dict):
            raise InputError(f"The model header must be a JSON object, got {type(data).__name__}.")
        _check_format(data)
        flavour = data.pop("flavour", None)
        _check_keys(data, {f.name for f in fields(cls)})
        data["config"] = _config(data["config"])
        data["classes"] = _classes(data["classes"])
        for key in ("mean", "std"):
            data[key] = tuple(data[key]) if isinstance(data[key], list) else data[key]
        header = cls(**data)
        if flavour != header.flavour:
            raise InputError(
                f"The model header says flavour '{flavour}', its configuration '{header.flavour}'; get the file again."
            )
        return header


def _check_format(data: Mapping[str, Any]) -> None:
    version = data.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InputError(f"The model header's 'format_version' must be a whole number from 1, got {version!r}.")
    if version > FORMAT_VERSION:
        raise InputError(
            f"The model file has format {version}, this version reads up to {FORMAT_VERSION}: upgrade napari-isdnet."
        )


def _check_keys(data: Mapping[str, Any], known: set[str]) -> None:
    missing, unknown = sorted(known - set(data)), sorted(set(data) - known)
    if missing:
        raise InputError(f"The model header lacks {', '.join(missing)}; get the file again or save it again.")
    if unknown:
        raise InputError(f"The model header has fields this version does not know: {', '.join(unknown)}.")


def _config(data: Any) -> ISDNetConfig:
    if not isinstance(data, dict):
        raise InputError(f"The model header's 'config' must be a JSON object, got {type(data).__name__}.")
    try:
        return ISDNetConfig.from_dict(data)
    except InputError:
        raise
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"The model header's 'config' does not describe a network: {error}.") from None


def _classes(data: Any) -> tuple[ClassInfo, ...]:
    if not isinstance(data, list) or not all(
        isinstance(item, dict) and set(item) == {"name", "color"} for item in data
    ):
        raise InputError("The model header's 'classes' must be a list of objects with a name and a color.")
    try:
        return classes_from(data)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"The model header's 'classes' cannot be read: {error}.") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def taught_names(header: ModelHeader) -> tuple[str, ...]:
    """Names of a model's classes in its order, '' in place of one that was listed and never taught."""
    untaught = header.lineage.get(NEVER_TAUGHT, ())
    return tuple("" if c.name in untaught else c.name for c in header.classes)


def _check_numbers(header: ModelHeader) -> None:
    for key in ("mean", "std"):
        value = getattr(header, key)
        if not isinstance(value, tuple) or len(value) != 3 or not all(_is_number(v) for v in value):
            raise InputError(
                f"The model header's '{key}' must be three finite numbers (red, green, blue), got {value}."
            )
    if min(header.std) <= 0:
        raise InputError(f"The model header's 'std' must be above zero, got {header.std}.")
    if header.pixel_size is not None and not (_is_number(header.pixel_size) and header.pixel_size > 0):
        raise InputError(
            f"The model header's 'pixel_size' must be metres above zero or null, got {header.pixel_size!r}."
        )
    if not isinstance(header.window, int) or isinstance(header.window, bool) or header.window < 32:
        raise InputError(
            f"The model header's 'window' must be a whole number of pixels from 32, got {header.window!r}."
        )
    for key in ("name", "description", "licence", "version"):
        if not isinstance(getattr(header, key), str):
            raise InputError(f"The model header's '{key}' must be a text, got {getattr(header, key)!r}.")
