"""What a fine-tuning starts from: which classes it knows, whatever their spelling, and which are only listed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from napari_isdnet_training.finetune import finetune
from napari_isdnet_training.registry import Network
from napari_isdnet_training.snapshot import Snapshot, take_snapshot
from napari_isdnet_training.starting import last_layers_only, start_from

from napari_isdnet.annotation.store import AnnotationStore
from napari_isdnet.annotation.strokes import Rectangle
from napari_isdnet.classes import classes_from, known_as
from napari_isdnet.exceptions import NothingToLearn
from napari_isdnet.io.array import ArraySource
from napari_isdnet.model.checkpoint import save_model
from napari_isdnet.model.header import NEVER_TAUGHT
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.progress import result_of
from napari_isdnet.window import Window
from tests.network_tools import lively, small


def written(path: Path, names: list[str], **lineage: object) -> tuple[Path, ISDNet]:
    net = lively(small(classes=len(names)))
    assert net.header is not None
    header = replace(net.header, classes=classes_from(names), lineage=lineage)
    return save_model(net, path, header, half=False), net


def rows(network: Network) -> torch.Tensor:
    assert isinstance(network.net, ISDNet)
    return network.net.classifier.out.bias.detach()


@pytest.mark.long
def test_a_class_that_is_only_listed_keeps_the_gentle_mode_and_is_never_said(tmp_path: Path) -> None:
    path, net = written(tmp_path / "m.safetensors", ["roof", "road"])
    classes = classes_from(["roof", "water", "road"])
    start = start_from(str(path), classes, 0, {"roof", "road"})
    assert start.knows_all
    assert last_layers_only(start.network, "quick", start)
    assert (start.new_classes, start.never_taught) == ((), ("water",))
    own = net.classifier.out.bias.detach()
    assert torch.equal(rows(start.network)[[0, 2]], own)
    assert isinstance(start.network.net, ISDNet)
    with torch.no_grad():
        said = start.network.net.eval()(torch.randn(1, 3, 64, 64)).logits.argmax(1)
    assert not bool((said == 1).any())
    assert start_from(str(path), classes, 0, {"water"}).new_classes == ("water",)  # painted: to be learnt


def test_a_class_that_was_listed_and_never_taught_is_new_to_the_next_run(tmp_path: Path) -> None:
    path, net = written(tmp_path / "m.safetensors", ["roof", "road", "water"], **{NEVER_TAUGHT: ["water"]})
    start = start_from(str(path), classes_from(["roof", "road", "water"]), 0)
    assert start.new_classes == ("water",)
    assert not start.knows_all
    own = net.classifier.out.bias.detach()
    assert torch.equal(rows(start.network)[:2], own[:2])
    assert abs(float(rows(start.network)[2] - own[:2].min())) < 0.1


def test_classes_go_on_whatever_their_case_and_spaces(tmp_path: Path) -> None:
    path, net = written(tmp_path / "m.safetensors", ["bare soil", "road"])
    start = start_from(str(path), classes_from(["Road ", "Bare  Soil"]), 0)
    assert start.knows_all
    assert start.names == ("road", "bare soil")
    assert torch.equal(rows(start.network), net.classifier.out.bias.detach()[[1, 0]])


@pytest.mark.long
def test_a_class_that_was_renamed_since_goes_on_in_a_run_of_its_project(tmp_path: Path) -> None:
    source = ArraySource([np.zeros((300, 300, 3), np.uint8)], "scene", rgb=True)
    with AnnotationStore.create(tmp_path / "a.isdnet", source.shape, ["object", "road"]) as store:
        for index in range(2):
            store.paint(Rectangle(Window(100 * index, 0, 90, 90)), index)
        made = {"annotations": {"position": store.position, "id": store.last_id}}
        path, net = written(tmp_path / "m001.safetensors", ["object", "road"], **made)
        other, _ = written(tmp_path / "other.safetensors", ["object", "road"])  # of no project
        store.rename_class(0, "nuclei")
        snapshot = take_snapshot(store)
        snapshot.save(tmp_path / "annotations.bin")  # as the training process gets it
        snapshot = Snapshot.load(tmp_path / "annotations.bin")
        assert snapshot.naming == store.naming()
        start = start_from(str(path), snapshot.classes, 0, naming=snapshot.naming)
        assert start.knows_all
        assert start.old == start.names == ("nuclei", "road")
        assert torch.equal(rows(start.network), net.classifier.out.bias.detach())
        assert start_from(str(other), snapshot.classes, 0, naming=snapshot.naming).new_classes == ("nuclei",)
        for model, new in ((path, ()), (other, ("nuclei",))):  # from a folder, as on the command line
            output = tmp_path / f"of_{model.name}"
            options = {"steps": 1, "batch": 1, "window": 64, "spread": 0, "device": "cpu"}
            result = result_of(finetune(source, store.folder, str(model), output=output, **options))
            assert result.new_classes == new


@pytest.mark.parametrize(
    ("names", "old", "known"),
    [
        (("Roof", "roof"), ("roof", "road"), ("Roof", "roof")),  # the one that is written alike goes on
        (("ROOF", "Roof"), ("roof", "road"), ("ROOF", "Roof")),  # which of them is meant, nobody knows
        (("ROOF", "way"), ("roof", "road"), ("roof", "way")),
        (("roof",), ("Roof", "ROOF"), ("roof",)),
    ],
)
def test_a_class_of_the_model_goes_on_once(
    names: tuple[str, ...], old: tuple[str, ...], known: tuple[str, ...]
) -> None:
    assert known_as(names, old) == known


def test_a_backbone_learns_what_is_painted() -> None:
    start = start_from("backbone", classes_from(["a", "b", "c"]), 0, {"b", "c"})
    assert (start.new_classes, start.never_taught) == (("b", "c"), ("a",))
    assert not start.knows_all


def test_one_class_alone_is_nothing_to_learn_where_no_other_is_known(tmp_path: Path) -> None:
    path, _ = written(tmp_path / "m.safetensors", ["roof", "road"])
    for model in ("backbone", str(path)):
        with pytest.raises(NothingToLearn, match=r"Only class .object. is painted.*paint a second class"):
            start_from(model, classes_from(["object", "background"]), 0, {"object"})
    assert start_from(str(path), classes_from(["object", "road"]), 0, {"object"}).new_classes == ("object",)
