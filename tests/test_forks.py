"""Workers that are forked, as those of torch's loaders are, read what their parent read before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

CODE = """
import os, signal, sys
import numpy as np
from napari_isdnet.io.base import POOL_FROM_TILES
from napari_isdnet.io.cache import shared_cache
from napari_isdnet.io.open import open_source
from napari_isdnet.window import Window

shared_cache().max_bytes = 0
with_pool = open_source(sys.argv[1], threads=2)
whole = Window.whole(with_pool.shape)
assert len(with_pool._grids[0][0]) > POOL_FROM_TILES
before = with_pool.read(whole)
child = os.fork()
if not child:
    signal.alarm(20)  # ends a child that waits for threads it has not got
    same = np.array_equal(open_source(sys.argv[1], threads=2).read(whole), before)
    os._exit(0 if same else 1)
sys.exit(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system forks no processes")
def test_a_forked_process_decodes_with_threads_of_its_own(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(16, 16))
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", CODE, str(tmp_path / "a.tif")], timeout=120)
    assert ran.returncode == 0
