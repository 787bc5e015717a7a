"""Addresses of Dask schedulers: which are taken, and that a wrong one is one sentence at once."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from napari_isdnet.engine import cluster
from napari_isdnet.engine.segment import segment
from napari_isdnet.exceptions import InputError
from napari_isdnet.io.array import ArraySource
from tests.network_tools import lively, picture, small


@pytest.mark.parametrize("address", ["foo", "", "tcp://foo", ":8786", "foo:0", "foo:70000", "http://foo:8786", "a b:1"])
def test_an_address_of_another_form_is_refused_at_once(address: str, tmp_path: Path) -> None:
    source = ArraySource([picture((64, 64))], "picture", "yxc")
    steps = segment(source, lively(small(channels=16)), output=tmp_path / "out", dask=address)
    with pytest.raises(InputError, match=re.escape(f"'{address}' is no address of a Dask scheduler; give HOST:PORT")):
        next(steps)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["local", "host:8786", "tcp://10.0.0.1:8786", "tls://[::1]:8786", "ws://a.b-c:1/"])
def test_addresses_that_dask_knows_are_taken(address: str) -> None:
    cluster.check_address(address)


def test_a_client_that_cannot_connect_does_not_wait_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to the garbage collector, it waited twice its time-out and printed a traceback."""
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(cluster, "check_address", lambda address: None)
    made: list[Any] = []
    close = distributed.Client.close

    def spy(client: Any, *rest: Any, **options: Any) -> Any:
        made.append(client)
        return close(client, *rest, **options)

    monkeypatch.setattr(distributed.Client, "close", spy)
    start = time.monotonic()
    with pytest.raises(InputError, match="No Dask scheduler answers at 'foo'"), cluster.connect("foo"):
        pass
    assert [client.status for client in made] == ["closed"]
    assert time.monotonic() - start < cluster.CONNECT_SECONDS
