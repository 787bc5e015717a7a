"""Several processes of one run: who started them and which one this is, and how they stop together."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from napari_isdnet_training.config import RunConfig
from napari_isdnet_training.interrupts import launching

from napari_isdnet.exceptions import InputError
from napari_isdnet.io.base import one_line

Found = TypeVar("Found")
# In the order in which Fabric asks them.
STARTERS: tuple[tuple[type[ClusterEnvironment], str], ...] = (
    (TorchElasticEnvironment, "torchrun"),
    (SLURMEnvironment, "SLURM"),
    (LSFEnvironment, "LSF"),
    (MPIEnvironment, "MPI"),
)


class SaidByAnother(InputError):
    """Why a run ends, in a process that leaves it to the first one of its machine to say so."""


class LostAnother(InputError):
    """Another process of a run has ended, or cannot be reached."""


def environment(options: RunConfig) -> ClusterEnvironment:
    """Which process of a run this is, by whoever started it; the rule of Fabric, which gets what is found here.

    Raises :class:`InputError` where that started another number of processes than the recipe asks for;
    :class:`SaidByAnother` in all of them but the first.
    """
    processes = options.devices * options.nodes
    kind, name = next(((k, n) for k, n in STARTERS if k.detect()), (LightningEnvironment, ""))
    if kind is SLURMEnvironment and processes == 1 and os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return LightningEnvironment()  # in a job of whatever shape, but started once
    refusal: type[InputError] = InputError
    try:
        where = kind()
        if name and where.global_rank() > 0:
            refusal = SaidByAnother
        if name and where.world_size() != processes:
            raise refusal(
                f"{name} started {where.world_size()} processes, and the recipe is for {processes}; make run.devices"
                " (of each machine) x run.nodes as many as are started."
            )
        where.validate_settings(num_devices=options.devices, num_nodes=options.nodes)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise refusal(f"{name} started these processes in another way than run.devices says: {error}") from None
    return where


def launched(fabric: Fabric, nodes: int, prepare: Callable[[], Found]) -> Found:
    """What ``prepare`` finds, after the processes of a run have started and found each other.

    An :class:`InputError` of it is raised before any process is started that would only be told so; where others were
    started elsewhere, and would wait for this one for half an hour, in all of them.
    """
    found: Any = None
    failure = None
    where: Any = getattr(fabric.strategy, "cluster_environment", None)
    try:
        found = prepare()
    except InputError as error:
        if fabric.world_size == 1 or not (where.creates_processes_externally or nodes > 1):
            raise
        failure = error
    if fabric.world_size > 1:
        with launching(), connected(fabric):
            fabric.launch()
    agree(fabric, failure)
    return found  # type: ignore[no-any-return]


@contextmanager
def connected(fabric: Fabric) -> Iterator[None]:
    """Within, a connection to another process that fails is :class:`LostAnother`, and no bug."""
    try:
        yield
    except RuntimeError as error:
        if fabric.world_size == 1 or not (isinstance(error, dist.DistError) or "gloo/" in str(error)):
            raise
        if not dist.is_initialized():
            where = f"{os.environ.get('MASTER_ADDR')}, port {os.environ.get('MASTER_PORT')}"
            raise LostAnother(
                f"The processes of this run cannot meet at {where} ({one_line(error, 200)}); set MASTER_ADDR and"
                " MASTER_PORT to the first machine and to a port of it that is free, the same for all of them."
            ) from error
        raise LostAnother(
            "Another process of this run has ended: it says why, or the system ended it, as a rule because memory was"
            " short; run the same command to go on from the last checkpoint."
        ) from error


def agree(fabric: Fabric, failure: InputError | None) -> None:
    """Raise in every process of a run what the first one of them that failed says; all of them must call it."""
    if fabric.world_size == 1:
        if failure is not None:
            raise failure
        return
    failed = fabric.all_reduce(torch.tensor(float(failure is not None)), reduce_op="sum")
    if failed == 0:
        return
    said: list[tuple[str, str] | None] = [None] * fabric.world_size
    dist.all_gather_object(said, None if failure is None else (str(failure), socket.gethostname()))
    rank, (text, machine) = next((rank, one) for rank, one in enumerate(said) if one is not None)
    text = text if rank == 0 else f"On {machine}: {text}"
    raise (SaidByAnother if fabric.local_rank else InputError)(text) from failure


def refuse_others(fabric: Fabric, step: int, data: str, output: Path) -> None:
    """Refuse to go on from another ``step``, or with other ``data`` (a digest), than the first process of the run.

    Weights that are not those of the others would stay so, and nobody would notice.
    """
    first = fabric.broadcast((step, data))
    if first[0] != step:
        raise InputError(
            f"{output} holds step {step} of a run here, and step {first[0]} where its first process is; give an"
            " --output on a disk that all machines share."
        )
    if first[1] != data:
        raise InputError(
            "data.root holds other samples or masks here than where the first process is; copy the data anew, or put"
            " them on a disk that all machines share."
        )
