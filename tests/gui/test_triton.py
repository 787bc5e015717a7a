"""A network in a process whose window was drawn: triton, where it is installed, and Mesa keep their LLVMs apart."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from napari_isdnet.model._triton import load_triton

SCRIPT = """
import sys
import napari, numpy
from qtpy.QtTest import QTest
viewer = napari.Viewer(show=True)
viewer.add_image(numpy.zeros((64, 64, 3), numpy.uint8))
QTest.qWait(1000)
assert not any(name in sys.modules for name in ("torch", "timm", "triton")), "imported too early to show anything"
from napari_isdnet.model.checkpoint import load_model
load_model("landcover-lite")
assert "timm" in sys.modules
viewer.close()
print("alive")
"""


@pytest.mark.long
def test_a_network_loads_after_the_window_was_drawn() -> None:
    """Without ``load_triton`` this dies of a segmentation fault where torch brings triton and Mesa draws."""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.split() == ["alive"]


def test_flags_are_put_back_whatever_triton_does(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.getdlopenflags()
    # A context, since fixtures of napari's are torn down before monkeypatch is, and import what they need then.
    with monkeypatch.context() as without_imports:
        without_imports.delitem(sys.modules, "triton", raising=False)
        without_imports.setattr(sys, "path", [])
        without_imports.setattr(sys, "meta_path", [])
        load_triton()
    assert sys.getdlopenflags() == before


def test_the_console_does_not_hear_that_triton_was_kept_out(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    from napari_isdnet.widgets import _engine

    log = logging.getLogger("torch.utils.flop_counter")
    with monkeypatch.context() as kept_out:
        kept_out.setattr(log, "filters", [])
        kept_out.delitem(sys.modules, "triton", raising=False)
        kept_out.setattr(sys, "platform", "linux")
        kept_out.setattr(_engine.Path, "read_text", lambda _self: "libLLVM-15.so.1")
        _engine.keep_triton_out()
        assert sys.modules.pop("triton") is None
        with caplog.at_level(logging.WARNING):
            log.warning("triton not found; flop counting will not work for triton kernels")
            log.warning("anything else")
    assert [record.message for record in caplog.records] == ["anything else"]
