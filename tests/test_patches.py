"""Normalised patches: as the formula says, whatever the policy hands over and however the samples lie in memory."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from napari_isdnet.engine.patches import IMAGENET_MEAN, IMAGENET_STD, PatchReader
from napari_isdnet.io.array import ArraySource
from napari_isdnet.io.intensity import IntensityPolicy
from napari_isdnet.io.open import open_source
from napari_isdnet.io.source import TileError
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


def test_of_unreadable_parts_only_those_that_are_masked_are_noted() -> None:
    """The passes before read all of it several times over, in windows that overlap: of a file whose half is gone
    millions of parts would be kept, and every one be looked for among them."""

    class HalfGone(ArraySource):
        def _read_channels(self, window, level, channels):
            if window.right > 128:
                raise TileError(self.name, window, level, "gone")
            return super()._read_channels(window, level, channels)

        def _read(self, window, level):
            return self._read_channels(window, level, range(self.channels))

    source = HalfGone([np.full((256, 256, 3), 7, np.uint8)], "half")
    reader = PatchReader(source, IntensityPolicy.from_source(source), MODEL, skip_bad_tiles=True)
    whole = Window.whole(source.shape)
    for patch in (reader.read(whole)[0], reader.stored(whole)):
        assert (patch[:, :128] != 0).all()
        assert (patch[:, 128:] == 0).all()
    assert not reader.bad
    labels = reader.mask(np.zeros(source.shape, np.uint8), whole)
    assert (labels[:, :128] == 0).all()
    assert (labels[:, 128:] == 255).all()
    assert sorted(reader.bad) == [Window(row, column, 64, 64) for row in range(0, 256, 64) for column in (128, 192)]
