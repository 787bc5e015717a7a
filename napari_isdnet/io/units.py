"""Units of length, as files, napari and people write them: one table for all readers, writers and docks."""

from __future__ import annotations

#: Symbol of every length that is known -> its name in UDUNITS-2 (which NGFF asks for, and pint knows), and metres.
_LENGTHS = {
    "pm": ("picometer", 1e-12),
    "Å": ("angstrom", 1e-10),
    "nm": ("nanometer", 1e-9),
    "µm": ("micrometer", 1e-6),
    "mm": ("millimeter", 1e-3),
    "cm": ("centimeter", 1e-2),
    "dm": ("decimeter", 1e-1),
    "m": ("meter", 1.0),
    "km": ("kilometer", 1e3),
    "in": ("inch", 0.0254),
    "ft": ("foot", 0.3048),
    "yd": ("yard", 0.9144),
    "mi": ("mile", 1609.344),
}
_SYMBOLS = {name: symbol for symbol, (name, _) in _LENGTHS.items()}
# The British spelling of every metre, the micro sign's twin (a Greek mu), and what is typed for want of either.
_SYMBOLS |= {name.replace("meter", "metre"): symbol for name, symbol in _SYMBOLS.items() if name.endswith("meter")}
_SYMBOLS |= {"um": "µm", "\u03bcm": "µm", "micron": "µm", "\u212b": "Å"}


def symbol_of(unit: str) -> str:
    """The symbol of a unit of length, however it is written ('micrometer', 'um' -> 'µm'); any other unit as it is."""
    return unit if unit in _LENGTHS else _SYMBOLS.get(unit, unit)


def name_of(unit: str) -> str | None:
    """The name of a unit of length in UDUNITS-2 ('µm' -> 'micrometer'), or None for one that is no length."""
    length = _LENGTHS.get(symbol_of(unit))
    return None if length is None else length[0]


def length_text(metres: float, digits: int = 3) -> str:
    """A length in the unit that a person would use: ``5e-07`` is '0.5 µm'; below zero for one to the other side."""
    least = (("m", 0.1), ("cm", 0.01), ("mm", 1e-4), ("µm", 1e-7))
    symbol = next((unit for unit, low in least if abs(metres) >= low), "nm")
    return f"{metres / _LENGTHS[symbol][1]:.{digits}g} {symbol}"


def metres_of(unit: str) -> float | None:
    """What one of a unit of length is in metres, or None for one that is no length (an angle, a pixel)."""
    length = _LENGTHS.get(symbol_of(unit))
    return None if length is None else length[1]
