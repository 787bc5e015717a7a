"""Checkpoints of the published implementation (a pickle with ``state_dict``) to this package's model files."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from napari_isdnet.classes import ClassInfo, classes_from
from napari_isdnet.exceptions import InputError
from napari_isdnet.model.checkpoint import save_model
from napari_isdnet.model.header import ModelHeader
from napari_isdnet.model.isdnet import ISDNet, Unfilled
from napari_isdnet.model.reference import config_from_reference, rename_reference_keys

# Scores that training frameworks leave beside the weights are numpy scalars; building one runs no code of the file's.
_SCALAR = np.float64(0).__reduce__()[0]
_SAFE: list[Any] = [
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
]


def convert(
    checkpoint: str | Path,
    output: str | Path,
    classes: Sequence[ClassInfo] | None = None,
    half: bool = False,
    **header: Any,
) -> ModelHeader:
    """Turn a checkpoint in the published layout into a model file at ``output`` and return its header.

    Args:
        checkpoint: a file that ``torch.save`` wrote: a mapping with ``state_dict``, or the state dict itself; keys may
            start with ``module.``. Read with ``weights_only=True``: code in it is refused, never run.
        output: the ``.safetensors`` file to write.
        classes: names and colours; the checkpoint's own (``meta``) or numbered ones where not given.
        half: store the weights as float16; off, because a converted model is to reproduce the original's numbers.
        header: further fields of :class:`ModelHeader` (name, licence, pixel_size, window, ...).

    Raises:
        InputError: not such a file, code inside, keys of another network, or another number of classes.
    """
    path = Path(checkpoint)
    data = _read(path)
    state = _state_dict(path, data)
    config = config_from_reference(state)
    own = classes if classes is not None else _classes_of(data, config.num_classes)
    if own is not None and len(own) != config.num_classes:
        raise InputError(
            f"{path} has {config.num_classes} classes, {len(own)} names were given; give as many as it has."
        )
    values: dict[str, Any] = {"name": Path(output).stem, "lineage": {"converted_from": path.name}, **header}
    if own is not None:
        values["classes"] = tuple(own)
    with Unfilled():
        model = ISDNet(config)
    _load(path, model, rename_reference_keys(state))
    result = ModelHeader.default(config, **values)
    save_model(model, output, result, half=half)
    return result


def _read(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"There is no file {path}; give the .pth file to convert.")
    try:
        with torch.serialization.safe_globals(_SAFE):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # torch says so both for code in the file and for a file that is no pickle at all.
        if zipfile.is_zipfile(path) or path.read_bytes()[:1] == b"\x80":
            raise InputError(
                f"{path} holds more than weights (Python code that would run on loading), which is refused; save its"
                f" state_dict alone where you trust it, and convert that."
            ) from None
        raise InputError(f"{path} is no PyTorch checkpoint; give a file that torch.save wrote.") from None
    except Exception as error:  # a file of anything makes the reader of pickles raise anything
        reason = str(error).split("\n")[0].split(". ")[0][:120] or "it ends early"
        raise InputError(f"{path} is damaged or no PyTorch checkpoint ({reason}); copy or download it again.") from None


def _state_dict(path: Path, data: Any) -> dict[str, Tensor]:
    state = data.get("state_dict", data) if isinstance(data, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{path} has no 'state_dict' of tensors; give a checkpoint of the published implementation.")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _classes_of(data: Mapping[str, Any], count: int) -> tuple[ClassInfo, ...] | None:
    """The names and colours a training framework left in ``meta``, where they fit."""
    meta = data.get("meta")
    names = meta.get("CLASSES") if isinstance(meta, Mapping) else None
    if not isinstance(names, list | tuple) or len(names) != count or len({str(name) for name in names}) != count:
        return None
    palette = meta.get("PALETTE") if isinstance(meta, Mapping) else None
    if isinstance(palette, list | tuple) and len(palette) == count:
        return classes_from((str(name), [int(v) for v in color]) for name, color in zip(names, palette))
    return classes_from(str(name) for name in names)


def _load(path: Path, model: ISDNet, state: Mapping[str, Tensor]) -> None:
    expected = model.state_dict()
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unknown:
        example = missing[0] if missing else unknown[0]
        raise InputError(
            f"{path} does not hold the published network: {len(missing)} weights are missing and {len(unknown)} are"
            f" unknown (such as '{example}'); give a whole checkpoint of it."
        )
    for key, value in state.items():
        if value.shape != expected[key].shape:
            raise InputError(
                f"{path} has '{key}' of shape {tuple(value.shape)}, the published network needs"
                f" {tuple(expected[key].shape)}; give an unchanged checkpoint of it."
            )
    model.load_state_dict(dict(state))
