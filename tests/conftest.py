"""What every test process needs before torch is imported."""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.cli_tools import Runner

# Each of pytest-xdist's workers computes on one core: two workers whose torch takes both cores wait for one another at
# every barrier, and the suite takes as long as it does alone. Processes that the tests start inherit it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


# Examples may take as long as a busy machine needs: how fast something is, no test says. They are the same in every
# run, so that what fails was broken by a change; 'pytest --hypothesis-profile search' looks for others.
_unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", _unhurried, derandomize=True)
settings.register_profile("search", _unhurried)
settings.load_profile("same")


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: a test that waits (for a window, a process, a disk) leaves its core to another."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Random numbers are those of the test, whichever others its worker has run; torch begins with others each time."""
    random.seed(0)
    generator = getattr(sys.modules.get("torch"), "default_generator", None)  # of one that is being imported: none yet
    if generator is not None:
        generator.manual_seed(0)


# What the imports make stays to the end: collections among them, a tenth of their time, find nothing.
gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Later collections need not look at it either, and in long loops of small objects they come less often."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither what a user keeps in the cache, nor what another worker puts there, is seen by a test."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("NAPARI_ISDNET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Runner:
    """Calls ``napari-isdnet`` in this process with the arguments given."""
    from tests.cli_tools import runner

    return runner(capfd)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of the test's own; for every test of a module: ``pytestmark`` with ``usefixtures``."""
    monkeypatch.setenv("NAPARI_ISDNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
