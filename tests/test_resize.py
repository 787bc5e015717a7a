"""Resizing a patch in the coordinates of its whole map, against torch resizing that whole map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from napari_isdnet.model.isdnet import nearest_index
from napari_isdnet.model.layers import Place, needed_for_resize, resize_bilinear
from napari_isdnet.window import Window


@st.composite
def cuts(draw: st.DrawFn, full: tuple[int, int]) -> Window:
    top, left = (draw(st.integers(0, n - 1)) for n in full)
    return Window(top, left, draw(st.integers(1, full[0] - top)), draw(st.integers(1, full[1] - left)))


def check(n_in: tuple[int, int], n_out: tuple[int, int], window: Window) -> None:
    whole = torch.randn(1, 2, *n_in, generator=torch.Generator().manual_seed(n_in[0]))
    expected = F.interpolate(whole, size=n_out, mode="bilinear", align_corners=False)[(..., *window.slices)]
    needed = needed_for_resize(window, n_in, n_out)
    assert Window.whole(n_in).contains(needed)
    patch = whole[(..., *needed.slices)]
    got = resize_bilinear(patch, Place(needed, n_in), Place(window, n_out))
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)
    with torch.inference_mode():  # in slices, which gradients do not pass through
        assert torch.equal(resize_bilinear(patch, Place(needed, n_in), Place(window, n_out)), got)
        halves = resize_bilinear(patch.bfloat16(), Place(needed, n_in), Place(window, n_out))
    assert halves.dtype == torch.bfloat16
    torch.testing.assert_close(halves.float(), expected, atol=0.1, rtol=0)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_window_of_any_resize(data: st.DataObject) -> None:
    n_in = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    # Far reductions read single pixels that lie wide apart; nothing in the network reduces that way.
    n_out = data.draw(st.tuples(*(st.integers(max(1, n // 2), 120) for n in n_in)))
    check(n_in, n_out, data.draw(cuts(n_out)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_sizes_of_the_network(data: st.DataObject) -> None:
    """Stride 8 to the image, stride 16 to stride 8, stride 32 to stride 16: sizes that round up."""
    shape = data.draw(st.tuples(st.integers(33, 300), st.integers(33, 300)))
    fine, coarse = data.draw(st.sampled_from([(1, 8), (8, 16), (16, 32)]))
    n_in, n_out = (tuple(-(-n // stride) for n in shape) for stride in (coarse, fine))
    check(n_in, n_out, data.draw(cuts(n_out)))


def test_a_map_that_keeps_its_size_is_returned_as_it_is() -> None:
    x = torch.randn(1, 2, 7, 9)
    place = Place(Window(3, 4, 7, 9), (20, 30))
    assert resize_bilinear(x, place, place) is x
    assert place.halved(0) == place
    assert Place.whole(x).is_whole
    assert not place.is_whole


def test_halved_places_are_the_patches_of_the_halved_map() -> None:
    full = (101, 67)
    line = torch.arange(full[0] * full[1], dtype=torch.float32).view(1, 1, *full)
    place = Place(Window(32, 16, 69, 40), full)
    half = place.halved()
    assert half.full == (51, 34)
    torch.testing.assert_close(
        line[:, :, ::2, ::2][(..., *half.window.slices)], line[(..., *place.window.slices)][..., ::2, ::2]
    )


@given(st.integers(1, 3000), st.integers(1, 3000))
@example(106, 26)
@example(749, 287)
@example(100_003, 25_000)
def test_nearest_takes_the_pixel_that_torch_takes_of_an_image(n_in: int, n_out: int) -> None:
    """In float32, whose scale rounds in its own way, and in the memory layout that the engine uses."""
    line = torch.arange(n_in, dtype=torch.float32).view(1, 1, 1, n_in).expand(1, 3, 2, n_in)
    line = line.contiguous(memory_format=torch.channels_last)
    taken = F.interpolate(line, size=(2, n_out), mode="nearest")[0, 1, 1].long().tolist()
    assert list(nearest_index(n_in, n_out)) == taken
