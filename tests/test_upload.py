"""Windows on their way to the device: what is computed waits for the copy, and memory that is short loses nothing."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from napari_isdnet.engine import upload
from napari_isdnet.engine.patches import as_tensor
from napari_isdnet.engine.upload import Upload

NORMAL = (np.zeros(3, np.float32), np.ones(3, np.float32))
PATCH = np.arange(60, dtype=np.float32).reshape(4, 5, 3)


def test_on_a_cpu_it_is_the_patch() -> None:
    assert torch.equal(Upload(torch.device("cpu"), NORMAL).send(PATCH).arrived(), as_tensor(PATCH, torch.device("cpu")))


class Card:
    """Streams that only note what they are asked for, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, short: bool) -> None:
        self.calls: list[str] = []
        self.short = short
        copying = SimpleNamespace(record_event=lambda: self.calls.append("copied") or "event")
        computing = SimpleNamespace(wait_event=lambda event: self.calls.append(f"wait for {event}"))
        monkeypatch.setattr(torch.cuda, "stream", self.within)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
        monkeypatch.setattr(upload, "as_tensor", self.as_tensor)
        self.upload = Upload(torch.device("cpu"), NORMAL)
        self.upload.stream = copying  # type: ignore[assignment]

    @contextmanager
    def within(self, stream: Any) -> Any:
        self.calls.append("in")
        yield
        self.calls.append("out")

    def as_tensor(self, patch: Any, device: Any) -> Any:
        if self.short:
            self.short = False
            raise torch.OutOfMemoryError("short")
        self.calls.append("copy")
        return SimpleNamespace(record_stream=lambda stream: self.calls.append("held"), patch=patch)


def test_what_is_computed_waits_for_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch, short=False)
    sent = card.upload.send(PATCH)
    assert card.calls == ["in", "copy", "copied", "out"]
    assert sent.arrived().patch is PATCH  # type: ignore[attr-defined]
    assert card.calls[4:] == ["wait for event", "held"]


def test_what_is_dropped_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch, short=False)
    sent = card.upload.send(PATCH)
    sent.drop()
    assert sent._tensor is None
    sent.arrived()
    assert card.calls.count("copy") == 2


def test_short_of_memory_it_is_sent_again_by_who_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch, short=True)
    sent = card.upload.send(PATCH)
    assert "copy" not in card.calls
    assert sent.arrived().patch is PATCH  # type: ignore[attr-defined]
    assert card.calls[-1] == "copy"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_card_many_windows_arrive_whole() -> None:
    device = torch.device("cuda")
    up = Upload(device, NORMAL)
    patches = [np.full((512, 512, 3), n, np.float32) for n in range(64)]
    sums = [sent.arrived().mean() for sent in [up.send(p) for p in patches]]
    assert [float(s) for s in sums] == list(range(64))
