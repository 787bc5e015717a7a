"""Colours of the procedural world: from outlines to a picture, and to classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from napari_isdnet.io.world_layers import FAR, HIGHWAY_HALF, Houses, Layers
from napari_isdnet.io.world_map import DENSE, FARM, INDUSTRIAL, PLOTS, RESIDENTIAL, WILD
from napari_isdnet.io.world_noise import Float, Real, cover, fade, hash_grid, unit
from napari_isdnet.landcover import BUILDING, LAND, ROAD, VEGETATION, WATER

Byte = npt.NDArray[np.uint8]

_FLAT_ROOFS: tuple[tuple[int, int, int], ...] = ((222, 220, 218), (196, 186, 174), (172, 176, 192), (206, 200, 190))
_FLAT_ROOFS += ((150, 148, 152), (232, 232, 232), (184, 172, 160), (140, 138, 150))
_TILED_ROOFS: tuple[tuple[int, int, int], ...] = ((158, 96, 74), (120, 112, 112), (132, 96, 80), (172, 110, 84))
_TILED_ROOFS += ((96, 98, 108), (186, 182, 178), (144, 104, 90), (110, 102, 100))
_ROOFS = np.array([_FLAT_ROOFS, _TILED_ROOFS], np.float32)
_CROPS = np.array([(92, 112, 62), (120, 132, 72), (78, 98, 58), (136, 138, 84)], np.float32)
_AVERAGE = {RESIDENTIAL: (138, 130, 120), DENSE: (142, 139, 138), INDUSTRIAL: (156, 153, 152), PLOTS: (176, 168, 160)}
BLOCK_DETAIL = 9.0
"""Pixels from this size on (m) show blocks by their average colour, not house by house."""


def classify(layers: Layers) -> Byte:
    """Class index of every pixel, at the point it samples."""
    houses = layers.houses()
    green, density = layers.green(houses)
    for crown in layers.crowns(density):
        green = green | (crown.outline < 0)
    out = np.where(green, np.uint8(VEGETATION), np.uint8(LAND))
    out[layers.water < 0] = WATER
    road = (layers.border < 0) | (_highway(layers) < 0)
    if houses is not None:
        road |= houses.street < 0
        out[(houses.outline < 0)] = BUILDING
    out[road] = ROAD
    return out


def _highway(layers: Layers) -> Float:
    return layers.highway - np.float32(HIGHWAY_HALF)  # over water it is a bridge


class Painter:
    """Paints one part; ``rgb`` is ``(3, height, width)``, 0..255."""

    def __init__(self, layers: Layers) -> None:
        self.layers = layers
        self.pixel = layers.pixel
        self.rgb = np.empty((3, *layers.water.shape), np.float32)
        self.dry = np.clip(np.float32(0.5) - layers.moist * 4, 0, 1)

    def blend(self, color: tuple[float, float, float] | Float | Real, share: Float | Real) -> None:
        """Lay ``color`` over the picture where ``share`` (0..1) says."""
        if not share.any():
            return
        for k in range(3):
            channel = self.rgb[k]
            step = color[k] - channel
            step *= share
            channel += step

    def shade(self, factor: Float) -> None:
        """Multiply all three channels."""
        self.rgb *= factor

    def between(self, moist: tuple[float, float, float], dry: tuple[float, float, float]) -> Float:
        """A colour that goes from ``moist`` to ``dry`` with the climate, (3, height, width)."""
        return np.stack([np.float32(m) + np.float32(d - m) * self.dry for m, d in zip(moist, dry)])

    def paint(self) -> Byte:
        """``(height, width, 3)``."""
        fine_detail = self.pixel < BLOCK_DETAIL
        layers = self.layers
        houses = layers.houses() if fine_detail else None
        green, density = layers.green(houses)
        self.ground(green, houses)
        if not fine_detail:
            self.average_blocks()
        self.trees(density)
        self.water()
        if houses is not None:
            self.yards(houses)
        self.roads(houses)
        if houses is not None:
            self.roofs(houses)
        tone = layers.tint * np.float32(0.05) + 1
        self.shade(tone)
        return self.develop()

    def ground(self, green: npt.NDArray[np.bool_], houses: Houses | None) -> None:
        """Soil, sand, grass and crops."""
        layers = self.layers
        soil = self.between((146, 130, 106), (204, 198, 194))
        soil[0] += layers.tint * 12
        soil[2] -= layers.tint * 14
        np.copyto(self.rgb, soil)
        dune = layers.texture(24, "dune")
        rough = layers.middle * np.float32(0.07) + layers.fine * np.float32(0.05)
        if dune is not None:
            rough += dune * np.float32(0.04)
        grain = layers.texture(1.6, "grain")
        if grain is not None:
            rough += grain * np.float32(0.05)
        self.shade(rough + 1)
        grass = self.between((88, 104, 64), (92, 100, 74))
        grass += (layers.fine * 9 + layers.middle * 6)[None]
        if FARM in layers.present:
            self.farm(grass, green)
        if houses is not None:
            paved = (layers.kind == DENSE) | (layers.kind == INDUSTRIAL)
            self.blend((148, 145, 146), np.where(paved, np.float32(0.75), np.float32(0)))
            plain = unit(houses.key, 2) * 46 - 23
            self.rgb += np.where((layers.kind == RESIDENTIAL) | (layers.kind == PLOTS), plain, 0)
        self.blend(grass, green.astype(np.float32) * np.float32(0.94))

    def farm(self, grass: Float, green: npt.NDArray[np.bool_]) -> None:
        """Crops in their parcels, with furrows."""
        layers = self.layers
        farm = (layers.kind == FARM) & (layers.to_street > 2.5)
        crop = _CROPS[(layers.block_key >> np.uint32(3)) & np.uint32(3)]
        inside = farm & green
        for k in range(3):
            np.copyto(grass[k], crop[..., k] + layers.middle * 5, where=inside)
        ploughed = farm & ~green
        self.blend((164, 138, 104), np.where(ploughed, np.float32(0.55), np.float32(0)))
        period = np.float32(2.2) + 3 * unit(layers.block_key, 2)
        left = fade(3.0, self.pixel)
        if left > 0:
            t = layers.v / period
            wave = np.abs(t - np.floor(t) - np.float32(0.5)) * 4 - 1
            wave *= np.where(farm, np.float32(0.07 * left), np.float32(0))
            self.shade(1 + wave)
            grass *= 1 + wave

    def trees(self, density: Float) -> None:
        """Crowns with their shadows; averaged where pixels are larger than a crown."""
        layers = self.layers
        average = np.float32(min(1.0, max(0.0, (self.pixel - 1.6) / 3)))
        leaf = self.between((56, 76, 44), (66, 76, 56))
        # Below closed canopy the gaps are dark undergrowth, not lawn.
        self.blend(leaf * np.float32(0.78), np.clip(density * 2 - 1, 0, np.float32(0.85)))
        if average < 1:
            rustle = layers.texture(0.9, "leaves")
            for crown in layers.crowns(density):
                if average == 0:
                    self.shade(1 - np.float32(0.42) * cover(crown.shadow, self.pixel))
                light = (crown.tone - np.float32(0.5)) * np.float32(0.45) + crown.light * np.float32(0.24) + 1
                if rustle is not None:
                    light += rustle * np.float32(0.2)
                self.blend(leaf * light, cover(crown.outline, self.pixel) * (1 - average))
        if average > 0:
            self.blend(leaf * np.float32(0.92), density * density * np.float32(0.8) * average)

    def water(self) -> None:
        """Depth colours with a tint over the shallows, wet sand at the shore, ripples."""
        layers = self.layers
        depth = -layers.water + 6 * layers.middle + 2 * layers.fine
        wet = np.clip(np.float32(1) - layers.water / 7, 0, 1)
        self.blend(self.between((150, 140, 112), (206, 200, 184)), wet * np.float32(0.6))
        share = cover(layers.water, self.pixel)
        if not share.any():
            return
        shallow = np.clip(1 - depth / np.float32(70), 0, 1)
        shallow *= shallow
        color = self.between((40, 60, 62), (22, 36, 34))
        tint = self.between((104, 124, 108), (124, 148, 124))
        color += (tint - color) * shallow
        ripple = layers.texture(2.4, "ripple")
        if ripple is not None:
            color += ripple * np.float32(2.4)
        color += layers.middle * np.float32(3)
        self.blend(color, share)

    def yards(self, houses: Houses) -> None:
        """Pavements, pools, parked cars, and the shadows of houses."""
        layers, pixel = self.layers, self.pixel
        kerb = cover(np.abs(houses.street - 1) - np.float32(0.8), pixel)
        self.blend((176, 172, 168), kerb * np.float32(0.8))
        if INDUSTRIAL in layers.present or DENSE in layers.present:
            self.parking(houses)
        if pixel < 5:
            self.shade(1 - np.float32(0.56) * cover(houses.shadow, pixel))

    def parking(self, houses: Houses) -> None:
        """Rows of cars on paved lots behind the buildings."""
        layers = self.layers
        left = np.float32(fade(2.5, self.pixel))
        if left == 0:
            return
        lot = ((layers.kind == INDUSTRIAL) | (layers.kind == DENSE)) & (houses.outline > 2) & (houses.street > 3)
        lot &= (layers.water > 9) & (layers.border > 3) & (layers.highway > HIGHWAY_HALF + 3)
        place_u, place_v = np.floor(layers.u / np.float32(2.7)), np.floor(layers.v / np.float32(8.5))
        x = np.abs(layers.u - place_u * np.float32(2.7) - np.float32(1.35)) - np.float32(0.9)
        y = np.abs(layers.v - place_v * np.float32(8.5) - np.float32(2.6)) - np.float32(2.1)
        draw = hash_grid(layers.seed, place_u, place_v) ^ houses.key
        taken = lot & (((draw >> np.uint32(9)) & np.uint32(7)) < 4) & (unit(houses.roof, 1) < 0.6)
        tone = unit(draw, 2) * 190 + 40
        warm = np.where((draw & np.uint32(7)) == 0, np.float32(0.45), np.float32(0.98))
        share = np.where(taken, cover(np.maximum(x, y), self.pixel), np.float32(0)) * left
        self.blend(np.stack([tone, tone * warm, tone * warm]), share)

    def roads(self, houses: Houses | None) -> None:
        """Streets, roads between districts with a middle line, highways with a median."""
        layers, pixel = self.layers, self.pixel
        worn = layers.texture(3.5, "worn")
        asphalt = self.between((104, 104, 106), (112, 106, 106)) + layers.fine * np.float32(4)
        if worn is not None:
            asphalt += worn * np.float32(5)
        if houses is not None:
            self.blend(asphalt * np.float32(1.06), cover(houses.street, pixel) * np.float32(min(1.0, 10 / pixel)))
        thin = np.float32(min(1.0, 14 / pixel))
        self.blend(asphalt, cover(layers.border, pixel) * thin)
        if pixel < 1.2:
            urban = (layers.kind != WILD) & (layers.kind != FARM)
            line = np.maximum(np.abs(layers.border + np.float32(5.3)) - np.float32(0.16), 2 - layers.lake)
            self.blend((196, 190, 170), np.where(urban, cover(line, pixel), np.float32(0)) * np.float32(0.6))
        edge = _highway(layers)
        if float(edge.min()) > pixel:
            return
        self.blend(asphalt * np.float32(0.93), cover(edge, pixel) * np.float32(min(1.0, 44 / pixel)))
        if pixel < 2.5:
            median = cover(layers.highway - np.float32(1.1), pixel)
            self.blend(self.between((112, 118, 88), (168, 160, 150)), median * np.float32(0.85))
            for lane in (4.5, 7.9):
                mark = np.abs(layers.highway - np.float32(lane)) - np.float32(0.13)
                self.blend((200, 200, 196), cover(mark, pixel) * np.float32(0.6))

    def roofs(self, houses: Houses) -> None:
        """Flat roofs with a parapet and plant, pitched roofs with a lit and a dark side."""
        layers, pixel = self.layers, self.pixel
        share = cover(houses.outline, pixel)
        share = np.where(np.minimum(layers.border, houses.street) < 0, np.float32(0), share)
        if not share.any():
            return
        flat = layers.column("flat") > 0
        palette = _ROOFS[flat.astype(np.intp) ^ 1, (houses.roof & np.uint32(7)).astype(np.intp)]
        tone = np.where(flat, np.float32(1), 1 + np.float32(0.26) * houses.facing)
        tone += (unit(houses.key, 1) - np.float32(0.5)) * np.float32(0.16)
        if pixel < 1.5:
            rim = (houses.outline > -0.55) & flat
            tone = np.where(rim, tone * np.float32(0.82), tone)
            box_a, box_b = np.floor(houses.along / 3), np.floor(houses.across / 3)
            draw = hash_grid(layers.seed, box_a, box_b) ^ houses.roof
            box = flat & (unit(draw, 2) < 0.1) & (houses.outline < -2)
            tone = np.where(box, tone * (np.float32(0.62) + unit(draw, 3) * np.float32(0.7)), tone)
        weave = layers.texture(1.1, "weave")
        if weave is not None:
            tone += weave * np.float32(0.025)
        self.blend(np.moveaxis(palette, -1, 0) * tone, share)

    def average_blocks(self) -> None:
        """Built-up districts from far away: the mean of roofs, streets and yards."""
        layers = self.layers
        for kind, color in _AVERAGE.items():
            if kind in layers.present:
                varied = unit(layers.block_key, 1)[None] * 20 - 10 + np.array(color, np.float32)[:, None, None]
                self.blend(varied, np.where(layers.kind == kind, np.float32(0.72), np.float32(0)))

    def develop(self) -> Byte:
        """To 8 bits, with the sensor's noise, which averages out in coarser pixels."""
        layers = self.layers
        strength = 3.0 * fade(1.2, self.pixel) if self.pixel < 1.2 else 0.0
        if strength > 0:
            scale = 64 / self.pixel  # finer than a pixel, so that neighbours never share a number
            draw = hash_grid(
                layers.seed, np.floor(layers.rows * scale)[:, None], np.floor(layers.columns * scale)[None]
            )
            for k in range(3):
                grain = ((draw >> np.uint32(8 * k)) & np.uint32(255)).astype(np.float32)
                self.rgb[k] += (grain - np.float32(127.5)) * np.float32(strength / 74)
        self.rgb += np.float32(0.5)
        np.clip(self.rgb, 0, 255, out=self.rgb)
        return np.ascontiguousarray(np.moveaxis(self.rgb.astype(np.uint8), 0, -1))


__all__ = ["FAR", "Painter", "classify"]
