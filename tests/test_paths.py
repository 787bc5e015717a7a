"""Folders of this user."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_isdnet.paths import cache_folder, user_models_folder


def test_the_cache_may_be_named_by_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("NAPARI_ISDNET_CACHE", "~/x")
    assert cache_folder() == tmp_path / "x"
    assert user_models_folder() == tmp_path / "x" / "models"
    monkeypatch.setenv("NAPARI_ISDNET_CACHE", "/~/x")
    assert cache_folder() == Path("/~/x")
