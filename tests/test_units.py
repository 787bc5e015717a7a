"""Units of length: every spelling that files and napari use comes to one symbol, and back to a name NGFF knows."""

from __future__ import annotations

import pint
import pytest

from napari_isdnet.io.source import PixelSize
from napari_isdnet.io.units import length_text, metres_of, name_of, symbol_of

SYMBOLS = ("pm", "Å", "nm", "µm", "mm", "cm", "dm", "m", "km", "in", "ft", "yd", "mi")


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_a_symbol_its_name_and_its_metres_agree_with_pint(symbol: str) -> None:
    name = name_of(symbol)
    assert name is not None
    assert symbol_of(name) == symbol
    assert name_of(name) == name
    metres = metres_of(symbol)
    assert metres is not None
    assert metres == pytest.approx(pint.UnitRegistry()(name).to("meter").magnitude, rel=1e-12)


@pytest.mark.parametrize("spelling", ["um", "µm", "\u03bcm", "micron", "micrometer", "micrometre"])
def test_every_micrometre_is_the_same(spelling: str) -> None:
    assert PixelSize(0.5, 0.25, spelling) == PixelSize(0.5, 0.25, "µm")
    assert PixelSize(0.5, 0.5, spelling).metres == pytest.approx(5e-7)


@pytest.mark.parametrize("unit", ["degree", "pixel", "", "furlong"])
def test_what_is_no_known_length_is_left_as_it_is(unit: str) -> None:
    assert symbol_of(unit) == unit
    assert name_of(unit) is None
    assert PixelSize(1.0, 1.0, unit).metres is None


@pytest.mark.parametrize(
    ("metres", "text"),
    [
        (5e-7, "0.5 µm"),
        (2.5e-10, "0.25 nm"),
        (1e-3, "1 mm"),
        (0.05, "5 cm"),
        (0.3, "0.3 m"),
        (30, "30 m"),
        (-2e-5, "-20 µm"),
    ],
)
def test_lengths_read_well(metres: float, text: str) -> None:
    assert length_text(metres) == text
