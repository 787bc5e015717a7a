"""The models that ship: small, whole, with a card that says how good they are; what cannot be found or written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from napari_isdnet.exceptions import InputError
from napari_isdnet.landcover import LANDCOVER_CLASSES
from napari_isdnet.model.card import model_card
from napari_isdnet.model.checkpoint import (
    DEFAULT_MODEL,
    available_models,
    find_model,
    load_model,
    read_header,
    save_model,
)
from tests.network_tools import lively, small


def test_all_shipped_models_are_small_load_and_say_how_good_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_isdnet.model.checkpoint.user_models_folder", lambda: Path("nowhere"))
    shipped = available_models()
    assert {"landcover-lite", "landcover-lite-six", "landcover-r18"} == set(shipped)
    assert sum(path.stat().st_size for path in shipped.values()) < 60e6
    for name in shipped:
        model = load_model(name, training=True)
        assert model.header is not None
        assert model.header.name == name
        assert 0.3 < model.header.figures["validation"]["miou"] < 0.6  # type: ignore[index]
        assert "scene 4" in model.header.description
        assert [c.name for c in model.header.classes] == [c.name for c in LANDCOVER_CLASSES]


def test_the_shipped_default_loads() -> None:
    assert load_model(DEFAULT_MODEL).header.lineage


def test_the_card_of_a_shipped_model_says_how_good_it_was() -> None:
    card = model_card(read_header("landcover-lite"))
    assert "- mIoU (validation): 0.473" in card
    assert "| building | 0.679 |" in card
    assert "How good it was" not in model_card(lively(small(classes=2, channels=16)).header)  # type: ignore[arg-type]


def test_a_home_that_is_nobodys_is_one_sentence() -> None:
    with pytest.raises(InputError, match="There is no model '~nosuch"):
        find_model("~nosuch/x.safetensors")


def test_a_model_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    model = lively(small(classes=2, channels=16))
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(InputError, match="is a folder; give the name of a file"):
        save_model(model, tmp_path / "folder.safetensors")

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("napari_isdnet.model.checkpoint.save_file", full)
    with pytest.raises(InputError, match=r"m\.safetensors cannot be written \(.*No space left.*\); free some space"):
        save_model(model, tmp_path / "m.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.safetensors"]
