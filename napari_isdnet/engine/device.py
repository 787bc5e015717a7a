"""Device, precision and memory: chosen once, said plainly; the network brought into the form that infers fastest."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

# Large pages halve the time that the system spends on handing out the memory of large maps (Linux; read by torch at its
# first large allocation).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from napari_isdnet.engine.rounding import round_weights
from napari_isdnet.exceptions import InputError
from napari_isdnet.model.floatbias import keep_biases
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.model.phases import by_phases

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
RUNTIME = 800 * 2**20
"""Bytes that a process holds before it reads its first window: Python, torch, timm and a network, prepared. Measured:
790 MiB with the CPU build of torch 2.13, of which 330 are files of libraries that the system may drop again."""


@dataclass(frozen=True)
class Placement:
    """Where and in which arithmetic a network runs."""

    device: torch.device
    dtype: torch.dtype

    @property
    def precision(self) -> str:
        """Name of the arithmetic: float32, bfloat16 or float16."""
        return str(self.dtype).removeprefix("torch.")


def has_native_bfloat16() -> bool:
    """True when this CPU multiplies bfloat16 in hardware (AVX512-BF16, AMX or the Arm equivalent)."""
    asked = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(bool(f()) for f in asked if f is not None)


def multiplies_bfloat16(device: torch.device) -> bool:
    """True when the device has bfloat16 in hardware; cards before NVIDIA's Ampere compute it in float32, slowly."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and has_native_bfloat16()


def choose(device: str = "auto", precision: str = "auto") -> Placement:
    """Resolve ``--device`` and ``--precision``; an :class:`InputError` says what this machine has."""
    if device == "auto":
        mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError):
        has = [
            "cpu",
            *(["cuda"] if torch.cuda.is_available() else []),
            *(["mps"] if torch.backends.mps.is_available() else []),
        ]
        raise InputError(f"Device '{device}' cannot be used here; this machine has {', '.join(has)}.") from None
    if precision == "auto":
        precision = "bfloat16" if multiplies_bfloat16(chosen) else "float32"
    if precision not in PRECISIONS:
        raise InputError(f"Precision must be auto, {', '.join(PRECISIONS)}, got '{precision}'.")
    if precision == "float16" and chosen.type == "cpu":
        raise InputError("float16 needs a GPU; on a CPU use float32 or bfloat16.")
    return Placement(chosen, PRECISIONS[precision])


def machine_memory() -> int:
    """Bytes of memory that this process may use in all: the machine's, or its control group's limit."""
    import psutil

    total = int(psutil.virtual_memory().total)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path) as file:
                total = min(total, int(file.read()))
        except (OSError, ValueError):
            continue
    return total


def budget_bytes(memory: float | None) -> int:
    """``--memory`` GiB, at least 1, in bytes, of the whole process; by default a quarter of what the machine has."""
    if memory is None:
        return machine_memory() // 4
    if memory < 1:
        raise InputError(
            f"--memory must be at least 1 GiB, of which Python, torch and a network take {RUNTIME / 2**30:.1f};"
            f" got {memory:g}."
        )
    return int(memory * 2**30)


def working_bytes(memory: float | None) -> int:
    """What a budget of ``memory`` GiB leaves for windows, maps and tiles: all but ``RUNTIME``, at least 128 MiB."""
    return max(2**27, budget_bytes(memory) - RUNTIME)


# What is no torch.OutOfMemoryError and means the same: of Apple's devices, and of one buffer that is too large for them
# (ATen/mps/MPSAllocator.mm), of the CPU (c10/core/impl/alloc_cpu.cpp), and of CUDA's libraries, which have memory too.
_SHORT = ("MPS backend out of memory", "Invalid buffer size: ", "DefaultCPUAllocator: ", "_STATUS_ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """True where torch says that there is too little memory, on whatever device."""
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _SHORT):
        return True
    return isinstance(error, torch.OutOfMemoryError)


def hand_back() -> None:
    """Give what torch keeps of the device's memory, and does not use, back to the device."""
    torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


@contextmanager
def device_memory(piece: str = "one window", advice: str = "use a smaller --window, or --device cpu") -> Iterator[None]:
    """Say in one sentence that the device's memory was too small for a piece that cannot be divided."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        hand_back()
        raise InputError(f"The device has too little memory for {piece}; end what else uses it, {advice}.") from error


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Fold every batch norm that follows a convolution into it, in place (inference only).

    Layers of one module that are registered one after the other are applied one after the other in this package and
    in timm's convolutional networks; :func:`prepare` checks the outcome and falls back.
    """
    for parent in list(model.modules()):
        children: list[tuple[str, nn.Module]] = list(parent.named_children())
        for (_, conv), (bn_name, bn) in pairwise(children):
            if not (isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d)):
                continue
            if bn.running_mean is None or bn.running_var is None:
                continue
            if conv.out_channels != bn.num_features or conv.transposed:
                continue
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
            )
            setattr(parent, bn_name, getattr(bn, "act", None) or nn.Identity())
    return model


@torch.inference_mode()
def prepare(model: ISDNet, placement: Placement, fold: bool = True) -> ISDNet:
    """A copy of ``model`` for inference: batch norm folded, channels last, on the device, in its arithmetic.

    The fusion's gates, which are computed from means over the whole image, stay in float32. In bfloat16 the weights are
    rounded together (:mod:`napari_isdnet.engine.rounding`), and on a CPU biases are not rounded
    (:mod:`napari_isdnet.model.floatbias`).
    """
    ready = copy.deepcopy(model).eval().float()
    if fold:
        x = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
        before = ready(x).logits
        fold_batch_norm(ready)
        if not (before - ready(x).logits).abs().max() <= 1e-3 * before.std() + 1e-5:  # or not a number
            ready = copy.deepcopy(model).eval().float()
    exact = [
        module
        for name, module in ready.named_modules()
        if name.endswith(("_gate", "_mlp")) or type(module).__name__ == "PooledConv"
    ]
    if placement.device.type == "cpu":
        by_phases(ready, least=3)
    floating: list[nn.Conv2d] = []
    if placement.dtype == torch.bfloat16:
        floating = keep_biases(ready) if placement.device.type == "cpu" else []
        round_weights(ready, {layer for module in exact for layer in module.modules()}, set(floating))
    ready = ready.to(placement.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if placement.dtype == torch.float32:
        exact_float32(placement.device)
    else:
        whole = {id(value) for module in (*exact, ready.pyramid) for value in tensors_of(module)}
        whole |= {id(layer.bias) for layer in floating}
        whole |= {id(value) for name, value in ready.named_parameters() if "alpha" in name}
        for value in tensors_of(ready):
            if value.is_floating_point() and id(value) not in whole:
                value.data = value.data.to(placement.dtype)
    for parameter in ready.parameters():
        parameter.requires_grad_(False)
    ready.header = model.header
    return ready


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers: a batch norm that was not folded has its means in the latter."""
    yield from module.parameters()
    yield from module.buffers()


def exact_float32(device: torch.device) -> None:
    """Let a graphics card's float32 be float32: by default cuDNN rounds the factors of convolutions to TF32's 10 bits.

    For the process, as torch has no narrower switch; what trains in bfloat16 does not notice.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def set_threads(threads: int | None) -> None:
    """Bound torch's CPU threads (a window that is open keeps a core for itself)."""
    if threads is not None:
        torch.set_num_threads(max(1, threads))


def keep_freed_memory() -> bool:
    """Let the process keep what it frees for what it needs next; for commands that compute and end. True where it can.

    glibc hands large blocks back to the system at once, which has to clear them again for the next map: on two cores
    that was a fifth of the time of a training step and more than half of segmenting with large windows. The peak grows,
    from 3.5 to 5 GiB there, so windows are chosen smaller. Elsewhere than on Linux with glibc nothing happens.
    """
    return _mallopt((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1))


def return_freed_memory() -> bool:
    """Let the process hand back at once what it frees; for commands with little memory. True where it can.

    By default glibc keeps what several threads freed, in pieces that the next window does not fit into: a third of the
    peak on 67 megapixels in windows of 512, for which handing back takes a tenth to a half more time.
    """
    return _mallopt((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, 4 * 2**20), (M_TRIM_THRESHOLD, 4 * 2**20))


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8  # malloc.h of glibc


def _mallopt(*settings: tuple[int, int]) -> bool:
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(bool(mallopt(name, value)) for name, value in settings)


def peak_rss_bytes() -> int:
    """Peak resident memory of this process so far."""
    try:
        import resource
    except ImportError:
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    scale = 1 if os.uname().sysname == "Darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * scale


def describe_device(device: torch.device) -> dict[str, Any]:
    """Name and free memory of a device, for widgets and reports."""
    import psutil

    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return {"device": str(device), "name": torch.cuda.get_device_name(device), "free": free, "total": total}
    memory = psutil.virtual_memory()
    name = f"{os.cpu_count()} CPU cores" if device.type == "cpu" else device.type
    return {"device": str(device), "name": name, "free": int(memory.available), "total": int(memory.total)}
