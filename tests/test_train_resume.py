"""Runs that were stopped, finished or went wrong: what is validated, kept, refused and said when they go on."""

from __future__ import annotations

import csv
import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from napari_isdnet_training.census import MaskCensus
from napari_isdnet_training.config import CropConfig, Recipe, recipe_from
from napari_isdnet_training.fit import fit
from napari_isdnet_training.history import History, read_history
from napari_isdnet_training.registry import Network, build
from napari_isdnet_training.sampling import CropSampler
from napari_isdnet_training.setup import class_weights
from napari_isdnet_training.state import read_state
from napari_isdnet_training.unfinished import KEY
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from napari_isdnet.exceptions import InputError
from napari_isdnet.model.checkpoint import read_header
from tests.test_train_fit import drain, make_data, tiny

CHECKPOINT = "last.ckpt.safetensors"


def plain() -> Network:
    """A network that takes no time."""
    torch.manual_seed(0)
    return Network("plain", nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1)), None)


def changed(recipe: Recipe, part: str, **values: object) -> Recipe:
    table = recipe.to_dict()
    table[part] |= values
    return recipe_from(table)


def validations(folder: Path) -> list[str]:
    return [row["step"] for row in read_history(folder / "log.csv") if "miou" in row]


@pytest.mark.parametrize("at", [2, 4])
def test_a_validation_that_was_due_is_done_by_the_run_that_goes_on(tmp_path: Path, at: int) -> None:
    recipe = tiny(make_data(tmp_path / "data"), steps=4, validate_every=2)
    for name, kept in (("whole", 99), ("cut", at)):
        steps = fit(recipe, tmp_path / name, network=plain())
        for step in steps:
            if step.stage == "train" and step.done == kept:
                steps.close()
    drain(fit(recipe, tmp_path / "cut", network=plain()))
    assert validations(tmp_path / "cut") == validations(tmp_path / "whole") == ["2", "4"]
    one, two = (load_file(tmp_path / name / CHECKPOINT) for name in ("whole", "cut"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_run_stopped_within_a_validation_does_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny(make_data(tmp_path / "data"), steps=4, validate_every=2)
    whole, _ = drain(fit(recipe, tmp_path / "whole", network=plain()))
    with monkeypatch.context() as patch:
        patch.setattr("napari_isdnet_training.fit.figures", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            drain(fit(recipe, tmp_path / "cut", network=plain()))
    shown, _ = drain(fit(recipe, tmp_path / "cut", network=plain()))
    assert [s.figures for s in shown] == [s.figures for s in whole[2:]]
    assert validations(tmp_path / "cut") == ["2", "4"]


def test_a_finished_run_gives_its_figures_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny(make_data(tmp_path / "data"), steps=3, validate_every=2)
    _, first = drain(fit(recipe, tmp_path / "run", network=plain()))
    log = (tmp_path / "run" / "log.csv").read_bytes()
    monkeypatch.setattr("napari_isdnet_training.fit.evaluate_samples", lambda *_: pytest.fail("validated again"))
    shown, again = drain(fit(recipe, tmp_path / "run", network=plain()))
    assert shown == []
    assert again == first
    assert again.figures["miou"] is not None
    assert (tmp_path / "run" / "log.csv").read_bytes() == log


@pytest.mark.long
def test_a_finished_run_leaves_its_data_and_its_model_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, output = make_data(tmp_path / "data"), tmp_path / "run"
    _, first = drain(fit(tiny(root, steps=1, validate_every=1), output))
    assert first.model is not None
    written = first.model.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr("napari_isdnet_training.fit.check_dataset", lambda *_, **__: pytest.fail("looked at all masks"))
        assert drain(fit(tiny(root, steps=1, validate_every=1), output)) == ([], first)
    assert first.model.stat().st_mtime_ns == written
    with pytest.raises(InputError, match=r"run\.steps was 1, now 2"):
        drain(fit(tiny(root, steps=2, validate_every=1), output))
    first.model.write_bytes(b"damaged")
    assert drain(fit(tiny(root, steps=1, validate_every=1), output)) == ([], first)
    assert read_header(first.model).lineage["step"] == 1


def test_changed_data_are_not_gone_on_with(tmp_path: Path) -> None:
    root, output = make_data(tmp_path / "data", count=3), tmp_path / "run"
    steps = fit(tiny(root, steps=3), output, network=plain())
    next(steps)
    steps.close()
    root = root.rename(tmp_path / "elsewhere")
    path = root / "masks" / "a1.png"
    mask = np.array(Image.open(path))
    Image.fromarray(1 - mask).save(path)
    with pytest.raises(InputError, match="holds a run on other data"):
        next(fit(tiny(root, steps=3), output, network=plain()))
    Image.fromarray(mask).save(path)
    assert drain(fit(tiny(root, steps=3), output, network=plain()))[1].steps == 3


def test_a_checkpoint_older_than_the_note_on_its_data_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "run"
    steps = fit(tiny(make_data(tmp_path / "data"), steps=2), output, network=plain())
    next(steps)
    steps.close()
    tensors = load_file(output / CHECKPOINT)
    with safe_open(str(output / CHECKPOINT), framework="pt") as file:
        facts = json.loads(file.metadata()[KEY])
    del facts["data"]
    save_file(tensors, output / CHECKPOINT, metadata={KEY: json.dumps(facts)})
    assert drain(fit(tiny(tmp_path / "data", steps=2), output, network=plain()))[1].steps == 2


def test_a_row_that_is_written_again_is_not_doubled(tmp_path: Path) -> None:
    history = History(tmp_path, 0)
    for value in (0.25, 0.5):
        history.add(1, {"loss": 3.0})
        history.add(1, {"miou": value})
    assert read_history(tmp_path / "log.csv") == [{"step": "1", "loss": "3"}, {"step": "1", "miou": "0.5"}]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_that_diverged_keeps_its_last_good_checkpoint(tmp_path: Path, stopped: bool) -> None:
    recipe = tiny(make_data(tmp_path / "data"), steps=4, checkpoint_every=2)
    network = plain()
    steps = fit(recipe, tmp_path / "run", network=network)
    while next(steps).done < 3:
        pass
    good = (tmp_path / "run" / CHECKPOINT).read_bytes()
    network.net[0].weight.data.fill_(float("nan"))
    if stopped:
        steps.close()
    else:
        with pytest.raises(
            InputError, match=r"loss is nan at step 3.*lower optimizer\.lr and start over \(--no-resume"
        ):
            drain(steps)
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == good


class Large(nn.Module):
    """Asks for more memory than any machine has, from its third call on."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.empty(1 << 50) if self.calls > 2 else x


@pytest.mark.parametrize(("validates", "piece"), [(0, "a step with 2 crops"), (2, "96 x 96 pixels of a0 at once")])
def test_too_little_memory_is_one_sentence_and_loses_no_step(tmp_path: Path, validates: int, piece: str) -> None:
    recipe = tiny(make_data(tmp_path / "data"), steps=4, validate_every=validates)
    network = plain()
    network.net.append(Large())
    with pytest.raises(InputError, match=rf"^The device has too little memory for {piece}; end what else uses it, "):
        drain(fit(recipe, tmp_path / "run", network=network))
    assert drain(fit(recipe, tmp_path / "run", network=plain()))[0][-1].done == 4


def test_a_step_without_a_finite_gradient_leaves_no_checkpoint_in_the_way(tmp_path: Path) -> None:
    recipe = changed(tiny(make_data(tmp_path / "data")), "optimizer", clip_norm=5.0)
    network = plain()
    network.net[2].bias.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(InputError, match="start over"):
        drain(fit(recipe, tmp_path / "run", network=network))
    drain(fit(changed(recipe, "run", channels_last=True, steps=1), tmp_path / "run", network=plain()))


def test_another_network_is_another_recipe_and_no_damage(tmp_path: Path) -> None:
    recipe = tiny(make_data(tmp_path / "data"), steps=1)
    drain(fit(recipe, tmp_path / "run", network=plain()))
    other = changed(recipe, "model", name="unet", options={})
    with pytest.raises(InputError, match=r"model\.name was isdnet-lite0, now unet"):
        drain(fit(other, tmp_path / "run", network=build("isdnet-lite0", 2, False, recipe.model.options)))
    (tmp_path / "run" / CHECKPOINT).write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="cannot be resumed"):
        drain(fit(recipe, tmp_path / "run", network=plain()))


def test_a_full_disk_is_one_sentence_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, output = tiny(make_data(tmp_path / "data"), steps=2, checkpoint_every=1), tmp_path / "run"
    good: list[bytes] = []

    def full(tensors: object, path: Path, metadata: object) -> None:
        if not (output / CHECKPOINT).exists():
            save_file(tensors, path, metadata)  # type: ignore[arg-type]
            return
        good.append((output / CHECKPOINT).read_bytes())
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("napari_isdnet_training.state.save_file", full)
        with pytest.raises(InputError, match=rf"^The disk is full \(writing .*{CHECKPOINT}\); free some space"):
            drain(fit(recipe, output, network=plain()))
    assert (output / CHECKPOINT).read_bytes() == good[0]
    assert not list(output.glob(".*"))
    assert drain(fit(recipe, output, network=plain()))[1].steps == 2


@pytest.mark.parametrize("columns", [("loss",), ("loss", "miou")])
def test_a_log_on_a_full_disk_keeps_its_whole_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: tuple[str, ...]
) -> None:
    history = History(tmp_path, 0)
    history.add(1, {"loss": 3.0})

    def full(writer: csv.DictWriter[str], _: object) -> None:
        writer.writer.writerow(["2"])
        raise OSError(errno.ENOSPC, "No space left on device")

    def half(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[:9])
        raise OSError(errno.ENOSPC, "No space left on device")

    if len(columns) == 1:  # appended; a new column rewrites the file
        monkeypatch.setattr(csv.DictWriter, "writerow", full)
    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(InputError, match=r"The disk is full \(writing .*log\.csv\)"):
        history.add(2, dict.fromkeys(columns, 1.0))
    assert read_history(tmp_path / "log.csv") == [{"step": "1", "loss": "3"}]
    assert [p.name for p in tmp_path.iterdir()] == ["log.csv"]


def sampler(temperature: float, counts: tuple[int, ...]) -> CropSampler:
    census = MaskCensus("m", (8, 8), np.array(counts), tuple(np.zeros((1, 2), np.int64) for _ in counts))
    return CropSampler([census], CropConfig(rare_class_probability=1, rare_class_temperature=temperature), 0)


def test_a_low_temperature_draws_the_rarest_class_there_is() -> None:
    assert sampler(0.001, (60, 0, 4))._class_share.tolist() == [0, 0, 1]
    weights = np.exp((1 - np.array([60, 4]) / 64) / 0.5)
    np.testing.assert_allclose(sampler(0.5, (60, 0, 4))._class_share[[0, 2]], weights / weights.sum(), rtol=1e-12)


def test_class_weights_are_as_many_as_the_classes_of_the_data() -> None:
    recipe = recipe_from({"name": "r", "data": {"layout": "deepglobe"}, "loss": {"class_weights": [1, 2]}})
    with pytest.raises(InputError, match="has 2 numbers for the 3 classes of the data; give one for each class"):
        class_weights(recipe, sampler(0.1, (60, 0, 4)), torch.device("cpu"))


def test_an_accelerator_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    recipe = changed(tiny(tmp_path), "run", accelerator="foo")
    with pytest.raises(InputError, match=r"run\.accelerator 'foo'.*allowed are auto, cpu, cuda and mps") as caught:
        next(fit(recipe, tmp_path / "run"))
    assert "\n" not in str(caught.value)


def test_steps_are_compared_by_the_classes_that_validation_holds(tmp_path: Path) -> None:
    """A third class is said in some pixels of the noise; the truth has none of it."""
    table = tiny(make_data(tmp_path / "data"), steps=1, validate_every=1).to_dict()
    table["data"] |= {"classes": ["red", "green", "blue"], "allow_empty_classes": True}
    table["optimizer"]["lr"] = 1e-9
    network = Network("colours", nn.Sequential(nn.Conv2d(3, 3, 1)), None)
    with torch.no_grad():
        network.net[0].weight[:] = torch.diag(torch.tensor([1.0, 1.0, 0.0]))[:, :, None, None]
        network.net[0].bias[:] = torch.tensor([0.0, 0.0, 1.1])
    _, result = drain(fit(recipe_from(table), tmp_path / "run", network=network))
    red, green, blue = (one["iou"] for one in result.figures["classes"].values())
    assert blue == 0
    assert result.figures["miou"] == pytest.approx((red + green) / 3, abs=1e-5)
    assert read_state(tmp_path / "run" / CHECKPOINT).best == pytest.approx((red + green) / 2, abs=1e-5)
    assert red + green > 1


@pytest.mark.parametrize("encoder", ["nope", "tu-nope"])
def test_an_encoder_that_is_not_there_is_one_sentence(encoder: str) -> None:
    with pytest.raises(InputError, match="Network 'unet' cannot be built with options") as caught:
        build("unet", 2, False, {"encoder_name": encoder})
    assert len(str(caught.value)) < 300


def test_a_class_that_is_nowhere_makes_no_other_weight_small() -> None:
    recipe = recipe_from({"name": "r", "data": {"layout": "deepglobe"}, "loss": {"class_weights": "inverse-sqrt"}})
    found = class_weights(recipe, sampler(0.1, (75, 0, 25)), torch.device("cpu"))
    assert found is not None
    assert found[1] == 1
    assert float(found[[0, 2]].mean()) == pytest.approx(1)
    assert float(found[2] / found[0]) == pytest.approx(3**0.5)
