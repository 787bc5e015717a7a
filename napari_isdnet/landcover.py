"""The five land-cover classes of the aerial data, of the procedural world and of the default models, in this order."""

from __future__ import annotations

from napari_isdnet.classes import ClassInfo

BUILDING, LAND, ROAD, VEGETATION, WATER = range(5)

# Hues far apart and away from what aerial pictures are made of (sand, asphalt, dull green), so that an overlay at half
# opacity is told from the ground below it, also by readers who do not tell red from green (orange against teal).
LANDCOVER_CLASSES: tuple[ClassInfo, ...] = (
    ClassInfo("building", (228, 87, 46)),
    ClassInfo("land", (243, 201, 105)),
    ClassInfo("road", (190, 110, 220)),
    ClassInfo("vegetation", (52, 168, 83)),
    ClassInfo("water", (38, 132, 255)),
)
