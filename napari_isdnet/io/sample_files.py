"""Samples as files: generated ones written as pyramids, real slides downloaded; what it costs is said before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import replacing
from napari_isdnet.io.samples import GIGAPIXEL_SIDE, Download, download, open_sample, samples
from napari_isdnet.paths import cache_folder
from napari_isdnet.progress import Clock, Progress

ASK_FROM = 20_000_000
"""Bytes from which a person is asked first."""
_BYTES_PER_PIXEL = (
    0.4  # measured, 0.36 on aerial-4k and 0.46 on desert-4k: picture and truth with all levels, JPEG of quality 90
)

Steps = Callable[[Path, bool], Iterator[Progress]]


@dataclass(frozen=True)
class SampleFile:
    """A sample that can be had as a file.

    ``about`` says what it is and whose; ``files`` are its names, the picture first; ``size`` its bytes, rounded where
    the file is generated. ``item`` is set where it comes from the web.
    """

    name: str
    title: str
    about: str
    files: tuple[str, ...]
    size: int
    steps: tuple[Steps, ...]
    item: Download | None = None

    def paths(self, folder: str | os.PathLike[str] | None = None) -> tuple[Path, ...]:
        """Where its files are, or will be; by default in the cache folder."""
        return tuple((cache_folder() if folder is None else Path(folder)) / name for name in self.files)

    def ready(self, folder: str | os.PathLike[str] | None = None) -> bool:
        """True when all of its files are there."""
        return all(path.exists() for path in self.paths(folder))

    def bytes_to_come(self, folder: str | os.PathLike[str] | None = None, overwrite: bool = False) -> int:
        """Bytes that getting it takes: 0 when it is there (unless ``overwrite``); for a download, asked of the server.

        Raises :class:`InputError` where the server cannot be reached, or has another file than it should.
        """
        if self.ready(folder) and not overwrite:
            return 0
        if self.item is None:
            return self.size
        found = self.item.remote_size()
        if found is not None and found != self.size:
            raise InputError(
                f"{self.item.url} has {found:,} bytes now, {self.size:,} were expected; the sample has changed there,"
                " so it is not fetched."
            )
        return self.size

    def cost(self, size: int) -> str:
        """What ``size`` bytes of it mean, in words."""
        if size == 0:
            return "there already"
        megabytes = f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"
        if self.item is None:
            return f"about {megabytes}, written here" if size >= 1e6 else f"{megabytes}, copied here"
        return f"{megabytes} from {urlsplit(self.item.url).hostname}"

    def obtain(
        self, folder: str | os.PathLike[str] | None = None, overwrite: bool = False
    ) -> Generator[Progress, None, None]:
        """Write or fetch what is not there and yield progress; close it to cancel.

        Every file appears under its name when it is whole. Raises :class:`InputError` as :func:`download` does.
        """
        parts = [
            (step, path)
            for step, path in zip(self.steps, self.paths(folder), strict=True)
            if overwrite or not path.exists()
        ]
        clock = Clock(len(parts))
        for number, (step, path) in enumerate(parts):
            if path.exists() and not overwrite:  # another process has got it meanwhile
                continue
            for progress in step(path, overwrite):
                yield clock.reach(number + progress.fraction, progress.stage)


def _write_world(name: str, truth: bool, path: Path, overwrite: bool) -> Iterator[Progress]:
    from napari_isdnet.io.world_file import write_world_tiff

    source: Any = _gigapixel() if name == "gigapixel" else open_sample(name)
    yield from write_world_tiff(source.truth if truth else source, path, overwrite=overwrite)


def _gigapixel() -> Any:
    from napari_isdnet.io.world import ProceduralWorld

    return ProceduralWorld((GIGAPIXEL_SIDE, GIGAPIXEL_SIDE))


def _copy_photograph(path: Path, overwrite: bool) -> Iterator[Progress]:
    from napari_isdnet.io.samples import photograph_path

    with replacing(path, overwrite) as temporary:
        shutil.copyfile(photograph_path(), temporary)
    yield Progress(1, 1, "copied")


def _world(name: str, title: str, side: int) -> SampleFile:
    from napari_isdnet.io.world import WORLD_VERSION

    stem = f"{name}-v{WORLD_VERSION}"  # another version of the package may generate another world
    return SampleFile(
        name,
        title,
        "generated, with the class of every pixel as a second file",
        (f"{stem}.tif", f"{stem}-truth.tif"),
        int(side * side * _BYTES_PER_PIXEL),
        (partial(_write_world, name, False), partial(_write_world, name, True)),
    )


def _slide(name: str, stem: str, title: str, sha256: str, size: int, about: str) -> SampleFile:
    url = f"https://openslide.cs.cmu.edu/download/openslide-testdata/Aperio/{stem}.svs"
    item = Download(url, sha256, size)
    return SampleFile(
        name, title, about, (f"{stem}.svs",), size,
        (lambda path, overwrite: download(item, path, overwrite),), item,
    )  # fmt: skip


def sample_files() -> tuple[SampleFile, ...]:
    """All samples that can be had as files."""
    sides = {"aerial-4k": 4096, "desert-4k": 4096, "aerial-100k": 100_000}
    titles = {sample.name: sample.title for sample in samples()}
    whose = "of stained tissue, CC0 (OpenSlide's test data)"
    return (
        *(_world(name, titles[name], side) for name, side in sides.items()),
        _world("gigapixel", f"Aerial world, {GIGAPIXEL_SIDE:,} x {GIGAPIXEL_SIDE:,}, truth", GIGAPIXEL_SIDE),
        SampleFile(
            "photograph", titles["photograph"], "by Rachel Michetti, CC0, from scikit-image",
            ("coffee.png",), 466_706, (_copy_photograph,),
        ),
        _slide(
            "slide-region", "CMU-1-Small-Region", "Region of a slide",
            "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7",
            1_938_955, f"2,967 x 2,220 pixels of a slide {whose}",
        ),
        _slide(
            "slide", "CMU-1", "Whole slide, 1.5 gigapixels",
            "00a3d54482cd707abf254fe69dccc8d06b8ff757a1663f1290c23418c480eb30",
            177_552_579, f"a whole slide, 32,914 x 46,000 pixels, {whose}",
        ),
    )  # fmt: skip


def find_sample_file(name: str) -> SampleFile:
    """The sample file ``name``; raises :class:`InputError` for another."""
    known = sample_files()
    for sample in known:
        if sample.name == name:
            return sample
    raise InputError(f"There is no sample '{name}'; choose one of {', '.join(s.name for s in known)}.")
