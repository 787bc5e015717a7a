"""Two processes that segment one image into one folder: what the second is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import tifffile

from napari_isdnet.engine.ledger import Ledger, read_header
from napari_isdnet.exceptions import AlreadyThere, InputError
from tests.network_tools import picture
from tests.segment_tools import four_classes, run


def test_while_a_job_is_begun_anew_its_results_do_not_seem_to_be_of_another(tmp_path: Path) -> None:
    image, output = tmp_path / "a.tif", tmp_path / "out"
    tifffile.imwrite(image, picture((96, 130)), photometric="rgb")
    run(image, four_classes(), output)
    job = output / "a.job"
    with (
        Ledger.open(job, read_header(job) or {}, resume=False) as other,
        pytest.raises(InputError, match=r"a\.job is being worked on by process"),
    ):
        run(image, four_classes(), output)
    with pytest.raises(AlreadyThere, match="exists; use --overwrite"):  # the other has not said that they are its own
        run(image, four_classes(), output)
    assert other.directory == job
