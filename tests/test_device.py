"""Where and how a network runs: choices, budgets, folding, and what is done when a device's memory is too small."""

from __future__ import annotations

import builtins
import copy
import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from napari_isdnet.engine import device, job
from napari_isdnet.engine.device import (
    RUNTIME,
    Placement,
    budget_bytes,
    choose,
    fold_batch_norm,
    machine_memory,
    prepare,
    working_bytes,
)
from napari_isdnet.engine.job import KEEPS_MEMORY, core_for, picture_bytes
from napari_isdnet.engine.local import LocalNetwork
from napari_isdnet.engine.patches import PatchReader
from napari_isdnet.engine.streaming import SMALLEST_CORE, StreamOptions, WholeImage
from napari_isdnet.exceptions import InputError
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.window import Window
from tests.network_tools import lively, picture, policy_of, small, source_of

CPU = Placement(torch.device("cpu"), torch.float32)


# ------------------------------------------------------------------------------------------------- choices


def test_auto_takes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for native, precision in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(device, "has_native_bfloat16", lambda native=native: native)
        found = choose()
        assert (found.device.type, found.precision) == ("cpu", precision)
    assert choose("cpu", "float32").dtype == torch.float32


@pytest.mark.parametrize(("capability", "native"), [((6, 1), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_cards_that_only_imitate_bfloat16_are_known(
    capability: tuple[int, int], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert device.multiplies_bfloat16(torch.device("cuda")) == native


def test_float32_on_a_card_is_no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    convolutions, products = SimpleNamespace(allow_tf32=True), SimpleNamespace(allow_tf32=True)
    monkeypatch.setattr(torch.backends, "cudnn", convolutions)
    monkeypatch.setattr(torch.backends.cuda, "matmul", products)
    device.exact_float32(CPU.device)
    assert convolutions.allow_tf32
    device.exact_float32(torch.device("cuda"))
    assert (convolutions.allow_tf32, products.allow_tf32) == (False, False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("cuda:99", "auto"), r"Device 'cuda:99' cannot be used here; this machine has cpu"),
        (("nonsense", "auto"), "Device 'nonsense' cannot be used"),
        (("cpu", "int8"), "Precision must be auto, float32, bfloat16, float16, got 'int8'"),
        (("cpu", "float16"), "float16 needs a GPU"),
    ],
)
def test_what_cannot_be_is_one_sentence(arguments: tuple[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        choose(*arguments)
    assert "\n" not in str(caught.value)


def test_memory_is_that_of_the_control_group_where_it_has_less(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = builtins.open

    def limited(text: str) -> None:
        def fake(path: Any, *rest: Any, **named: Any) -> Any:
            return io.StringIO(text) if str(path).startswith("/sys/fs/cgroup") else opened(path, *rest, **named)

        monkeypatch.setattr(builtins, "open", fake)

    limited("max")
    total = machine_memory()
    assert total > 2**28
    limited(str(2**28))
    assert machine_memory() == 2**28
    assert budget_bytes(None) == 2**26
    assert budget_bytes(1.5) == 3 * 2**29
    with pytest.raises(InputError, match=r"at least 1 GiB, of which Python, torch and a network take 0.8; got 0.5"):
        budget_bytes(0.5)


@pytest.mark.parametrize(
    ("memory", "core"), [(1, 512), (1.25, 768), (1.5, 1024), (2, 1536), (4, 1536), (6, 2048), (24, 4096)]
)
def test_windows_are_as_large_as_the_budget_of_the_process_allows(memory: float, core: int) -> None:
    work = working_bytes(memory)
    assert work == memory * 2**30 - RUNTIME
    assert core_for(work, (10**5, 10**5)) == core
    patch = (core + 2 * 224) ** 2
    assert core == 512 or patch * 200 * (4 if work >= KEEPS_MEMORY else 1) + 96 * 2**20 <= work
    assert core_for(work, (300, 200)) == 320
    assert core_for(work, (10**5, 10**5), 1000) == 992


@pytest.mark.parametrize("memory", [1.5, 2, 6, 24])
def test_what_the_image_takes_is_left_out_of_the_windows(memory: float) -> None:
    work, huge = working_bytes(memory), (10**5, 10**5)
    assert core_for(work, huge, stored=8) == core_for(work, huge)  # four bands of 16 bits: within the margin
    assert core_for(work, huge, stored=64) < core_for(work, huge)
    assert core_for(work, huge, resident=work - 2**27) == 512
    core = core_for(work, huge, resident=work // 2)
    held = work // 2 + (core + 2 * 224) ** 2 * 200 * (2 if work >= KEEPS_MEMORY else 1)
    assert core == 512 or held <= work
    picture = picture_bytes(memory)
    assert work // 2 <= picture < work
    assert core_for(work, huge, resident=picture) == 512


@pytest.mark.parametrize(("memory", "called"), [(1, "return"), (2.5, "return"), (3, "keep")])
def test_a_small_budget_hands_back_what_is_freed(memory: float, called: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(job, "keep_freed_memory", lambda: calls.append("keep"))
    monkeypatch.setattr(job, "return_freed_memory", lambda: calls.append("return"))
    job.keep_memory_within(memory)
    assert calls == [called]


# ------------------------------------------------------------------------------------------------- folding


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"flavour": "paper"},
        {"deep": "tf_efficientnet_lite0"},
        pytest.param({"deep": "resnet50", "shallow": "stdc2"}, marks=pytest.mark.long),
    ],
    ids=["reference", "paper", "lite", "large"],
)
def test_folding_changes_no_logit_and_leaves_hardly_a_norm(changes: dict[str, Any]) -> None:
    model = lively(
        small(changes.get("flavour", "reference"), 3, **{k: v for k, v in changes.items() if k != "flavour"})
    )
    ready = prepare(model, CPU)
    x = torch.randn(1, 3, 70, 106)
    with torch.no_grad():
        expected, got = model(x).logits, ready(x).logits
    assert (expected - got).abs().max() < 1e-3 * expected.std()

    def norms(network: nn.Module) -> int:
        return sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())

    assert norms(ready) < 0.1 * norms(model)
    assert not any(p.requires_grad for p in ready.parameters())
    assert model.classifier.conv.bn.weight.requires_grad  # the model that was given is left as it was


class Crossed(nn.Module):
    """Layers that are not applied in the order in which they are registered."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(wrapped.out.out_channels, wrapped.out.out_channels, 1)
        self.bn = nn.BatchNorm2d(wrapped.out.out_channels)
        self.wrapped = wrapped
        nn.init.uniform_(self.bn.weight, 0.5, 1.5)
        self.bn.running_mean.uniform_(1, 2)

    @property
    def out(self) -> nn.Module:
        return self.wrapped.out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.bn(self.wrapped(x)))


def test_a_network_that_cannot_be_folded_runs_as_it_is() -> None:
    model = lively(small(classes=3, channels=16, auxiliary=False, super_resolution=False))
    model.classifier = Crossed(model.classifier).eval()  # type: ignore[assignment]
    x = torch.randn(1, 3, 64, 64)
    ready = prepare(model, CPU)
    with torch.no_grad():
        folded = fold_batch_norm(copy.deepcopy(model))
        assert not torch.allclose(folded(x).logits, model(x).logits, atol=1e-2)  # folding would be wrong here
        torch.testing.assert_close(ready(x).logits, model(x).logits)


def test_half_precision_keeps_the_gates_in_float32() -> None:
    ready = prepare(lively(small(classes=3, channels=16)), Placement(torch.device("cpu"), torch.bfloat16))
    assert ready.classifier.out.weight.dtype == torch.bfloat16
    assert ready.fuse8.shallow_gate.conv.weight.dtype == torch.float32
    assert ready.fuse8.shallow_mlp[0].weight.dtype == torch.float32
    assert ready.fuse8.alpha_shallow.dtype == torch.float32
    with torch.no_grad():
        assert ready(torch.randn(1, 3, 64, 64)).logits.isfinite().all()


@pytest.mark.long
def test_half_precision_keeps_what_norms_of_the_gates_have_learnt() -> None:
    model = lively(small(classes=3, channels=16))
    norms = [name for name, m in model.named_modules() if "_gate" in name and isinstance(m, nn.BatchNorm2d)]
    assert norms
    ready = prepare(model, Placement(torch.device("cpu"), torch.bfloat16), fold=False)
    for name in norms:
        wanted, kept = model.get_submodule(name), ready.get_submodule(name)
        assert torch.equal(kept.running_mean, wanted.running_mean)
        assert torch.equal(kept.weight, wanted.weight)
    assert ready.classifier.conv.bn.running_mean.dtype == torch.bfloat16


# ------------------------------------------------------------------------------------------------- too little memory


def streamed(model: ISDNet, image: np.ndarray, core: int) -> WholeImage:
    reader = PatchReader(source_of(image), policy_of(image), model)
    whole = WholeImage(prepare(model, CPU), reader, CPU, StreamOptions(core=core, exact=True))
    for _ in whole.prepare():
        pass
    return whole


def limited_to(
    side: int, seen: list[int], monkeypatch: pytest.MonkeyPatch, error: type[RuntimeError] = torch.OutOfMemoryError
) -> None:
    """The device refuses shallow patches of more than ``side`` pixels a side."""
    original = LocalNetwork.shallow

    def refusing(self: LocalNetwork, x: torch.Tensor, place: Any) -> Any:
        seen.append(max(x.shape[2:]))
        if seen[-1] > side:
            raise error("MPS backend out of memory (MPS allocated: 9 GiB)")
        return original(self, x, place)

    monkeypatch.setattr(LocalNetwork, "shallow", refusing)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])  # CUDA's, and that of Apple's devices
def test_cores_that_are_refused_are_divided_and_the_result_is_the_same(
    error: type[RuntimeError], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lively(small(classes=3, channels=16, fusion="add_ca", auxiliary=False, super_resolution=False))
    image = picture((300, 1060))
    plain = streamed(model, image, 1024)
    halo = plain.local.shallow_halo
    window = Window.whole((300, 1060))
    expected = plain.logits(window)
    seen: list[int] = []
    limited_to(256 + 2 * halo + 64, seen, monkeypatch, error)
    divided = streamed(model, image, 1024)
    got = divided.logits(window)
    assert (got - expected).abs().max() < 1e-3 * expected.std()
    for name in ("shallow16", "shallow8", "deep16", "fused"):
        a, b = (whole.means.vector(name) for whole in (plain, divided))  # type: ignore[union-attr]
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    refused = [side for side in seen if side > 256 + 2 * halo + 64]
    assert len(refused) == 2, "what was refused once is not tried again"  # 1024, then 512
    assert divided._largest == 256


def test_a_device_that_takes_no_core_at_all_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(small(classes=3, channels=16, fusion="add_ca", auxiliary=False, super_resolution=False))
    limited_to(0, [], monkeypatch)
    with pytest.raises(InputError, match=f"even for windows of {SMALLEST_CORE} pixels; .* --device cpu"):
        streamed(model, picture((300, 300)), 256)


@pytest.mark.long
def test_freed_memory_is_kept_where_glibc_can() -> None:
    """In a process of its own, since it is for good: blocks that are freed and asked for again fault no page anew."""
    import subprocess
    import sys

    code = """
import resource, sys
from napari_isdnet.engine.device import keep_freed_memory
import torch
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
def once():
    torch.ones(64, 2**20).sum()
for _ in range(12):  # the heap grows until the block has found its place, which took up to five
    once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    once()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {}
    for how in ("keep", "return"):
        run = subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True)
        kept, count = run.stdout.split()
        faults[how] = int(count)
        if how == "keep" and kept == "False":
            pytest.skip("the allocator of this platform has no such switch")
    assert faults["keep"] * 4 < faults["return"], faults


@pytest.mark.long
def test_freed_memory_is_handed_back_where_glibc_can() -> None:
    """In a process of its own: of blocks that are freed beneath one that is in use, nothing stays resident."""
    import subprocess
    import sys

    code = """
import ctypes, psutil, sys
from napari_isdnet.engine.device import return_freed_memory
returned = return_freed_memory() if sys.argv[1] == "return" else None
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def blocks(count, mib):
    made = [libc.malloc(mib * 2**20) for _ in range(count)]
    for block in made:
        ctypes.memset(block, 1, mib * 2**20)
    return made
for block in blocks(1, 30):  # glibc takes smaller ones from the heap from now on
    libc.free(block)
made = blocks(12, 16)
on_top = blocks(1, 1)
before = psutil.Process().memory_info().rss
for block in made:
    libc.free(block)
print(returned, (before - psutil.Process().memory_info().rss) >> 20)
"""
    gone: dict[str, int] = {}
    # Where the heap happens to lie below another mapping, glibc cannot grow it and hands blocks back by itself.
    for how in ("return", "default", "default", "default"):
        run = subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True)
        returned, mib = run.stdout.split()
        gone[how] = min(int(mib), gone.get(how, 1 << 20))
        if how == "return" and returned == "False":
            pytest.skip("the allocator of this platform has no such switch")
    assert gone["return"] > 180, gone
    assert gone["default"] < 20, gone
