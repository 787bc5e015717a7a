"""Model files: safetensors with a JSON header, written whole or not at all, checked when read."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from napari_isdnet.exceptions import InputError
from napari_isdnet.model.config import PRESETS
from napari_isdnet.model.header import METADATA_KEY, ModelHeader
from napari_isdnet.model.isdnet import TRAINING_ONLY, ISDNet, Unfilled
from napari_isdnet.paths import user_models_folder
from napari_isdnet.system import move

SUFFIX = ".safetensors"
DEFAULT_MODEL = "landcover-lite"
"""Name of the shipped model that is used where none is given."""

_HALF_LIMIT = 65504.0
_PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".pkl")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def available_models() -> dict[str, Path]:
    """Name -> file of every shipped model, and of the user's own ones in the cache folder (shipped names win)."""
    result: dict[str, Path] = {}
    for folder in (Path(__file__).parent, user_models_folder()):
        if folder.is_dir():
            for path in sorted(folder.glob(f"*{SUFFIX}")):
                result.setdefault(path.stem, path)
    return result


def find_model(name_or_path: str | Path) -> Path:
    """The file of a model given by name (see :func:`available_models`) or by path."""
    path = Path(os.path.expanduser(name_or_path))  # '~nobody' stays as it is
    if path.is_file():
        return path
    text = str(name_or_path)
    models = available_models()
    if text in models:
        return models[text]
    if text in PRESETS:
        raise InputError(
            f"'{text}' is a configuration without trained weights, whose class map would be noise: train it with"
            f" 'isdnet-train fit', or convert a trained checkpoint with 'napari-isdnet convert'."
        )
    if path.is_dir():
        raise InputError(f"{path} is a folder; give one model file ({SUFFIX}).")
    names = ", ".join(models) if models else "none yet"
    raise InputError(f"There is no model '{text}': give a {SUFFIX} file or one of the names known here ({names}).")


def save_model(
    model: ISDNet,
    path: str | Path,
    header: ModelHeader | None = None,
    half: bool = True,
    training: bool = True,
) -> Path:
    """Write ``model`` and its header to ``path``; an existing file is replaced in one step.

    Args:
        model: the network; ``model.header`` is used where ``header`` is not given.
        path: file to write; the suffix must be ``.safetensors``.
        header: what to write beside the weights.
        half: keep weights of two axes and more as float16 (half the file; about 1e-3 relative). Batch norm, biases
            and whatever float16 cannot hold stay float32.
        training: keep the training-only heads, which fine-tuning needs.

    Raises:
        InputError: another suffix, a header of another configuration, or weights that are not finite.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise InputError(f"A model file must be named *{SUFFIX}, got '{path.name}'.")
    config = model.config if training else model.config.inference()
    header = header or header_of(model)
    if header.config.inference() != config.inference():
        raise InputError("The header describes another configuration than the model's; make it from model.config.")
    state = model.state_dict()
    tensors = {k: _stored(k, v, half) for k, v in state.items() if training or not k.startswith(TRAINING_ONLY)}
    header = replace(header, config=config)
    write_tensors(tensors, path, header)
    return path


def load_model(name_or_path: str | Path, training: bool = False) -> ISDNet:
    """Read a model: float32, on the CPU, in evaluation mode, with its header as ``model.header``.

    Args:
        name_or_path: a name from :func:`available_models`, or a file.
        training: build the training-only heads too and read them; they are dropped otherwise.

    Raises:
        InputError: no such model, another kind of file, a damaged one, or weights that do not fit its configuration.
    """
    path = find_model(name_or_path)
    with _opened(path) as file:
        header = _header_of(path, file.metadata())
        keys = [key for key in file.keys() if training or not key.startswith(TRAINING_ONLY)]  # noqa: SIM118 (no mapping)
        tensors = {key: file.get_tensor(key) for key in keys}
    with Unfilled():
        model = ISDNet(header.config if training else header.config.inference())
    _check_tensors(path, model.state_dict(), tensors)
    model.load_state_dict({key: _full(value) for key, value in tensors.items()})
    model.header = header
    return model.eval()


def read_header(name_or_path: str | Path) -> ModelHeader:
    """The header alone, without reading the weights."""
    path = find_model(name_or_path)
    with _opened(path) as file:
        return _header_of(path, file.metadata())


def model_hash(model: ISDNet | str | Path) -> str:
    """SHA-256 (hex) of what a prediction depends on: inference weights, configuration, normalisation, window, contrast
    and classes.

    The same for a file and for the model loaded from it, with or without training-only heads; a name, a figure or a
    description in the header does not change it.
    """
    if not isinstance(model, ISDNet):
        model = load_model(model)
    header, config = header_of(model), model.config.inference()
    relevant = (config.to_dict(), header.mean, header.std, header.window, header.contrast, header.classes)
    digest = hashlib.sha256(repr(relevant).encode())
    for key, value in sorted(model.state_dict().items()):
        if not key.startswith(TRAINING_ONLY) and not key.endswith("num_batches_tracked"):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def header_of(model: ISDNet) -> ModelHeader:
    """The model's header, or one with numbered classes and the usual normalisation where it has none yet."""
    header = getattr(model, "header", None)
    return header if isinstance(header, ModelHeader) else ModelHeader.default(model.config)


def _largest(value: Tensor) -> float:
    """The largest magnitude in ``value``, NaN or infinity where it holds one: in one pass, where isfinite takes six."""
    low, high = value.aminmax() if value.numel() else (0, 0)
    return max(abs(float(low)), abs(float(high)))


def _stored(key: str, value: Tensor, half: bool) -> Tensor:
    """A copy as it goes to the file: aliases separated, large weights in float16."""
    value = value.detach().cpu().contiguous().clone()
    if not value.is_floating_point():
        return value
    largest = _largest(value)
    if not math.isfinite(largest):
        raise InputError(f"The model's '{key}' holds NaN or infinity: training diverged, go back to an earlier model.")
    return value.half() if half and value.ndim >= 2 and largest < _HALF_LIMIT else value.float()


def _full(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def read_tensors(name_or_path: str | Path) -> tuple[ModelHeader, dict[str, Tensor]]:
    """Header and weights exactly as they are stored, for writing them to another file."""
    path = find_model(name_or_path)
    with _opened(path) as file:
        # Copies: a file that is in use, as tensors that lie in it are, is not replaced on Windows.
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (no mapping)
        return _header_of(path, file.metadata()), tensors


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, header: ModelHeader, more: Mapping[str, str] | None = None
) -> None:
    """Write a model file, whole or not at all; ``more`` is text that goes beside the header."""
    metadata = {"format": "pt", METADATA_KEY: header.to_json(), **(more or {})}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the name of a file.")
        temporary = path.with_name(f".{path.stem[:100]}-{os.getpid()}-{threading.get_ident()}.part")
        try:
            save_file(dict(tensors), temporary, metadata=metadata)
            with open(temporary, "rb+") as file:  # on the disk before the name says so: power may go at any time
                os.fsync(file.fileno())
            move(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except (OSError, SafetensorError) as error:  # a full disk is either, by who was writing
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"{path} cannot be written ({reason}); free some space or choose another place.") from error


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    """The file opened by safetensors, its errors said in a sentence."""
    with open(path, "rb") as raw:
        start = raw.read(4)
    if path.suffix.lower() in _PICKLE_SUFFIXES or start.startswith(_PICKLE_STARTS):
        raise InputError(
            f"{path} is a PyTorch checkpoint, which may hold code and is not opened as a model: turn it into one with"
            f" 'napari-isdnet convert {path.name} --output {path.stem}{SUFFIX}'."
        )
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise InputError(
            f"{path} is no whole {SUFFIX} file ({str(error).removeprefix('Error while deserializing header: ')});"
            f" copy or download it again."
        ) from None


def _header_of(path: Path, metadata: Mapping[str, str] | None) -> ModelHeader:
    if not metadata or METADATA_KEY not in metadata:
        raise InputError(
            f"{path} has no napari-isdnet header, so what it holds is unknown: give a file that this package wrote."
        )
    try:
        return ModelHeader.from_json(metadata[METADATA_KEY])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _check_tensors(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """One sentence for the first thing that is wrong."""
    for words, keys in (("lacks", expected.keys() - found.keys()), ("has unknown", found.keys() - expected.keys())):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise InputError(
                f"{path} {words} weights ('{min(keys)}'{more}) for its configuration; save or convert it again."
            )
    for key, value in found.items():
        if value.shape != expected[key].shape:
            raise InputError(
                f"{path} has '{key}' of shape {tuple(value.shape)} where its configuration needs"
                f" {tuple(expected[key].shape)}; save or convert it again."
            )
        if value.is_floating_point() != expected[key].is_floating_point():
            raise InputError(
                f"{path} has '{key}' as {value.dtype}, which is not a kind that was written; convert it again."
            )
        if value.is_floating_point() and not math.isfinite(_largest(value)):
            raise InputError(
                f"{path} has NaN or infinity in '{key}', so it cannot predict; go back to an earlier model."
            )
