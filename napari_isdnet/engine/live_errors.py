"""The errors of a map that is still being segmented, where one looks: :class:`LiveErrors`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from napari_isdnet.classes import IGNORE_INDEX
from napari_isdnet.engine.errors import ErrorSource
from napari_isdnet.engine.live import PredictionPyramid
from napari_isdnet.engine.tiles import Array, TilePyramid
from napari_isdnet.window import Window


class LiveErrors(TilePyramid):
    """Error codes of what the live maps know, 255 elsewhere; they follow as more is known.

    Looking at errors is looking at the maps: their windows are wished for, nothing is computed in the reading thread.
    ``maps`` gives, for every live map that is compared, how far (pixels) its values reach into the codes around them.
    ``source`` must read them by :meth:`PredictionPyramid.known`. ``offsets`` says which pixel of a live map the codes'
    pixel (0, 0) is, where that is another one.
    """

    def __init__(
        self,
        source: ErrorSource,
        maps: Mapping[PredictionPyramid, int],
        offsets: Mapping[PredictionPyramid, tuple[int, int]] | None = None,
    ) -> None:
        def read(level: int, window: Window) -> Array:
            return source.read(window, level)[..., 0]

        super().__init__(source.levels, read, fill=IGNORE_INDEX)
        self._maps = {live: (offsets or {}).get(live, (0, 0)) for live in maps}
        self._ends: list[Callable[[], None]] = [
            live.follow(partial(self._more, reach, self._maps[live])) for live, reach in maps.items()
        ]

    def _more(self, reach: int, offset: tuple[int, int], window: Window) -> None:
        changed = window.shifted(-offset[0], -offset[1]).expanded(reach).clipped(self.shapes[0])
        if not changed.empty:
            self.renew(changed)

    def answer(self, level: int, window: Window) -> Array:
        """What is known of ``window`` now; what is missing is segmented next."""
        if window.area > 1:
            view = window.multiplied(2**level).clipped(self.shapes[0])
            for live, offset in self._maps.items():
                seen = view.shifted(*offset).clipped(live.shapes[0])
                if not seen.empty:
                    live.look_at(seen, level)
        return super().answer(level, window)

    def close(self) -> None:
        """Stop following; join the threads."""
        for end in self._ends:
            end()
        super().close()
