"""Normalised patches: as the formula says, whatever the policy hands over and however the samples lie in memory."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from napari_isdnet.engine.patches import IMAGENET_MEAN, IMAGENET_STD, PatchReader
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.open import open_source
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.window import Window

torch.manual_seed(0)
MODEL = ISDNet(ISDNetConfig.lite(2, channels=16))
MEAN, STD = (np.asarray(v, np.float32) for v in (IMAGENET_MEAN, IMAGENET_STD))


@given(height=st.integers(1, 70), width=st.integers(1, 900), seed=st.integers(0, 9), order=st.sampled_from("CF"))
def test_three_bytes_are_normalised_as_the_formula_says(height: int, width: int, seed: int, order) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    source = open_source(np.array(image, order=order))
    policy = IntensityPolicy.from_source(source)
    patch, valid = PatchReader(source, policy, MODEL).read(Window.whole((height, width)))
    assert valid is None
    assert patch.flags.c_contiguous
    np.testing.assert_array_equal(patch, (image.astype(np.float32) - MEAN) / STD)
    # by the general way, which a fourth channel asks for
    four = np.concatenate([image, image[..., :1]], axis=-1)
    np.testing.assert_array_equal(policy.apply(np.array(image, order=order))[0], policy.apply(four)[0])


def test_what_a_policy_hands_over_in_any_layout_is_normalised() -> None:
    class Columns:
        """A policy whose pixels lie column by column."""

        def apply(self, raw):
            mask = np.ones(raw.shape[:2], bool)
            mask[0, 1] = False
            return np.asfortranarray(raw.astype(np.float32)), mask

        def valid(self, raw):
            return None

    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    patch, _ = PatchReader(open_source(image), Columns(), MODEL).read(Window(1, 2, 3, 4))
    wanted = (image[1:4, 2:6].astype(np.float32) - MEAN) / STD
    wanted[0, 1] = 0
    np.testing.assert_array_equal(patch, wanted)


def test_the_source_keeps_its_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.float32)
    kept = image.copy()
    source = open_source(image)
    PatchReader(source, IntensityPolicy.from_source(source, "none"), MODEL).read(Window(0, 0, 40, 50))
    np.testing.assert_array_equal(image, kept)
