"""Small networks with weights that matter, and images to run them on."""

import copy
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_isdnet.classes import classes_from
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.model.checkpoint import load_model
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.header import ModelHeader
from napari_isdnet.model.isdnet import ISDNet


def lively(config: ISDNetConfig, seed: int = 0) -> ISDNet:
    """A network whose statistics and alphas are not the neutral ones of a fresh network, with a header.

    One of its own for who asks; torch's random numbers go on as if it had just been made, whether it was or is a copy.
    """
    model, state = _lively(config, seed)
    torch.set_rng_state(state)
    return copy.deepcopy(model)


@lru_cache(maxsize=6)  # of 20 to 100 MB each
def _lively(config: ISDNetConfig, seed: int) -> tuple[ISDNet, torch.Tensor]:
    torch.manual_seed(seed)
    model = ISDNet(config).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    for name, parameter in model.named_parameters():
        if "alpha" in name:
            parameter.data.fill_(0.5)
    classes = classes_from([f"class {k}" for k in range(config.num_classes)])
    model.header = ModelHeader(config=config, classes=classes, name="lively", window=256)
    return model, torch.get_rng_state()


def small(flavour: str = "reference", classes: int = 5, **changes: object) -> ISDNetConfig:
    """A configuration that runs fast on a CPU."""
    base: dict[str, object] = {"channels": 32, "shallow": "narrow"}
    return ISDNetConfig.of(flavour, classes, **{**base, **changes})  # type: ignore[arg-type]


def picture(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """A uint8 RGB image whose halves differ in brightness, so that global means matter."""
    image = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image[: shape[0] // 2] //= 3
    return image


def source_of(image: np.ndarray, name: str = "picture") -> ArraySource:
    """The image as a source."""
    return ArraySource([image], name, "yxc")


def policy_of(image: np.ndarray) -> IntensityPolicy:
    """Its intensity policy."""
    return IntensityPolicy.from_source(source_of(image))


def refusal(path: Path | str) -> str:
    """The sentence with which a model file is refused."""
    with pytest.raises(InputError) as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message
