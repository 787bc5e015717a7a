"""The picture of the annotation loop: means over seeds, from the rows as they stand in the file."""

from __future__ import annotations

from pathlib import Path

from napari_isdnet_training.benchmark.curves import curve, plot_loop
from PIL import Image

ROWS = [
    {"places": "before", "seed": "", "round": "", "strokes": "", "miou_right": "0.40"},
    {"places": "full", "seed": "0", "round": "2", "strokes": "", "miou_right": "0.60"},
    *(
        {"places": places, "seed": str(seed), "round": str(n), "strokes": str(10 * n + seed), "miou_right": str(value)}
        for places, seed, n, value in (
            ("random", 0, 2, 0.50), ("random", 0, 1, 0.42), ("random", 1, 1, 0.44), ("random", 1, 2, 0.52),
            ("suggested", 0, 1, 0.45),
        )
    ),
]  # fmt: skip


def test_curves_are_means_by_round_over_the_seeds() -> None:
    strokes, mean, least, most = curve(ROWS, "random")
    assert strokes == [10.5, 31]  # 10 and 11, then 20 and 21 more
    assert [round(v, 3) for v in mean] == [0.43, 0.51]
    assert least == [0.42, 0.50]
    assert most == [0.44, 0.52]
    assert curve(ROWS, "nowhere") == ([], [], [], [])


def test_a_picture_is_written_whole_also_of_a_run_that_just_began(tmp_path: Path) -> None:
    for name, rows in (("all.png", ROWS), ("begun.png", ROWS[:1])):
        plot_loop(rows, tmp_path / name)
        with Image.open(tmp_path / name) as picture:
            assert picture.size[0] > 600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.png", "begun.png"]
