"""The demo without a window: make a landscape, segment it, judge it against its truth, write what one can look at."""

from __future__ import annotations

import json
import platform
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.disk import disk_errors, write_atomic
from napari_isdnet.progress import Progress
from napari_isdnet.window import Window

if TYPE_CHECKING:
    from napari_isdnet.engine.evaluation import Evaluation
    from napari_isdnet.io.source import ImageSource
    from napari_isdnet.model.isdnet import ISDNet

Result = TypeVar("Result")

MARK = "README.txt"
_FIRST_LINE = "napari-isdnet demo"
DETAIL = 1024
"""Side in pixels of the region that is shown at full resolution and segmented alone."""


def claim_folder(folder: Path) -> Path:
    """Make ``folder`` the demo's; :class:`InputError` where it holds anything but an earlier demo."""
    mark = folder / MARK
    with disk_errors(folder):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; give a folder as --output.")
        if folder.is_dir() and any(folder.iterdir()) and not _is_ours(mark):
            raise InputError(f"{folder} holds other files, which the demo would mix with its own; give a new --output.")
        folder.mkdir(parents=True, exist_ok=True)
    write_atomic(mark, _readme().encode())
    return folder.resolve()


def _is_ours(mark: Path) -> bool:
    return mark.is_file() and mark.read_text(encoding="utf-8", errors="replace").startswith(_FIRST_LINE)


def _readme() -> str:
    return f"""{_FIRST_LINE}

Everything here was written by 'napari-isdnet demo' and is written anew when it runs again with this folder.

<sample>.tif, <sample>_truth.tif   the generated landscape and its exact classes (0 building, 1 land, 2 road, ...)
result/                            the class map (OME-Zarr, PNG) and the job, as 'napari-isdnet segment' writes them
pictures/                          image, truth, prediction and errors, side by side, whole and in detail
report/                            what 'napari-isdnet evaluate' writes: report.html stands alone
demo.json                          all figures
"""


def run_files(
    folder: Path, model: str, sample: str, notes: Sequence[str] = ()
) -> Generator[Progress, None, dict[str, Any]]:
    """All of the demo into ``folder``; returns its facts, which ``demo.json`` holds too."""
    from napari_isdnet.io.open import open_source
    from napari_isdnet.io.store import LabelStore
    from napari_isdnet.model.checkpoint import load_model

    network = load_model(model)
    image_path, truth_path = folder / f"{sample}.tif", folder / f"{sample}_truth.tif"
    yield from _share(_write_sample(sample, image_path, truth_path), 0.0, 0.15)
    with ExitStack() as stack:
        image = stack.enter_context(closing(open_source(image_path)))
        truth = stack.enter_context(closing(open_source(truth_path)))
        segmented = yield from _share(_segment(image, network, folder / "result"), 0.15, 0.65)
        labels = LabelStore.open(folder / "result" / f"{image.name}.job" / f"{image.name}.ome.zarr")
        stack.callback(labels.close)
        judged = yield from _share(_judge(labels, truth, image, network, folder), 0.8, 0.1)
        detail = _detail(judged, image.shape)
        region = yield from _share(_region_alone(image, labels, network, detail, folder), 0.9, 0.08)
        pictures = _pictures(image, truth, labels, network, detail, folder / "pictures")
    facts = {
        "mode": "files",
        "sample": sample,
        "pixels": list(image.shape),
        "model": network.header.name if network.header else model,
        "folder": str(folder),
        "pictures": {name: str(path) for name, path in pictures.items()},
        "report": None if judged is None else str(folder / "report" / "report.html"),
        "json": str(folder / "demo.json"),
        "measured_on": "a generated landscape with exact truth, not a photograph",
        "figures": None if judged is None else _figures(judged),
        "model_figures": {} if network.header is None else dict(network.header.figures),
        "region": region,
        "segment": segmented,
        "machine": {"system": platform.system(), "processor": platform.machine(), "python": platform.python_version()},
        "notes": [*notes, *([] if judged is not None else [_OTHER_CLASSES]), *segmented["warnings"]],
    }
    write_atomic(folder / "demo.json", (json.dumps(facts, indent=1, default=str) + "\n").encode())
    yield Progress(1, 1, "written")
    return facts


_OTHER_CLASSES = (
    "The model's classes are not those of the generated landscape (building, land, road, vegetation, water), so there"
    " are no figures."
)


def _share(steps: Generator[Progress, None, Result], start: float, share: float) -> Generator[Progress, None, Result]:
    """The steps of one part of the demo as steps of the whole demo."""
    try:
        while True:
            yield next(steps).within(start, share)
    except StopIteration as stop:
        result: Result = stop.value
        return result
    finally:
        steps.close()


def _write_sample(sample: str, image: Path, truth: Path) -> Generator[Progress, None, None]:
    from napari_isdnet.io.samples import open_sample
    from napari_isdnet.io.world_file import write_world_tiff

    with closing(cast(Any, open_sample(sample))) as world:
        for step in write_world_tiff(world, image, overwrite=True):
            yield replace(step.within(0, 0.75), stage="making a landscape")
        for step in write_world_tiff(world.truth, truth, overwrite=True):
            yield replace(step.within(0.75, 0.25), stage="writing its truth")


def _segment(image: ImageSource, network: ISDNet, output: Path) -> Generator[Progress, None, dict[str, Any]]:
    from napari_isdnet.engine.segment import segment

    result = yield from segment(image, network, output=output, formats=("ome-zarr", "png"), overwrite=True)
    return result.to_dict()


def _comparable(network: ISDNet) -> bool:
    """True where class indices of the model are those of the generated truth."""
    from napari_isdnet.landcover import LANDCOVER_CLASSES

    classes = () if network.header is None else network.header.classes
    return [c.name.lower() for c in classes] == [c.name for c in LANDCOVER_CLASSES]


def _judge(
    labels: ImageSource, truth: ImageSource, image: ImageSource, network: ISDNet, folder: Path
) -> Generator[Progress, None, Evaluation | None]:
    """Figures against the truth and the report; None where the model has other classes."""
    from napari_isdnet.engine.evaluate import evaluate
    from napari_isdnet.engine.report import write_report

    if not _comparable(network):
        return None
    assert network.header is not None
    result = yield from evaluate(labels, truth, network.header.classes)
    write_report(result, labels, truth, image, folder / "report")
    return result


def _detail(judged: Evaluation | None, shape: tuple[int, int]) -> Window:
    """A region for a closer look: the middle. It is not chosen by how well the model did there."""
    del judged
    side = min(DETAIL, *shape)
    return Window((shape[0] - side) // 2, (shape[1] - side) // 2, side, side)


def _region_alone(
    image: ImageSource, labels: ImageSource, network: ISDNet, region: Window, folder: Path
) -> Generator[Progress, None, dict[str, Any]]:
    """Segment a region as a region of the image, and as an image of its own; count what differs from the whole's."""
    import numpy as np

    from napari_isdnet.engine.segment import segment
    from napari_isdnet.io.open import open_source
    from napari_isdnet.io.store import LabelStore

    whole = labels.read(region)[..., 0]
    cut = open_source(image.read(region), name="cut_out")
    differ: dict[str, int] = {}
    for number, (name, source, roi) in enumerate((("as_region", image, region), ("cut_out", cut, None))):
        output = folder / "result" / name
        steps = segment(source, network, output=output, roi=roi, overwrite=True)
        yield from _share(steps, number / 2, 0.5)
        with closing(LabelStore.open(output / f"{source.name}.job" / f"{source.name}.ome.zarr")) as store:
            own = store.read(Window.whole(region.shape))[..., 0]
        differ[name] = int(np.count_nonzero(own != whole))
    return {"window": [region.row, region.column, *region.shape], "pixels": region.area, "differing_pixels": differ}


def _figures(judged: Evaluation) -> dict[str, Any]:
    facts = judged.to_dict()
    return {
        "mean_iou": facts["mean_iou"],
        "accuracy": facts["accuracy"],
        "iou": {c["name"]: c["iou"] for c in facts["classes"]},
        "boundary_f1": {c["name"]: c["boundary_f1"] for c in facts["classes"]},
    }


def _pictures(
    image: ImageSource, truth: ImageSource, labels: ImageSource, network: ISDNet, detail: Window, folder: Path
) -> dict[str, Path]:
    from napari_isdnet.demo_pictures import write_pictures

    assert network.header is not None
    return write_pictures(
        image, truth if _comparable(network) else None, labels, network.header.classes, detail, folder
    )
