"""Every network that a configuration can describe: it runs, it trains, and its options do what they say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from napari_isdnet.exceptions import InputError
from napari_isdnet.model.auxiliary import distillation_loss, segmentation_loss
from napari_isdnet.model.config import ISDNetConfig
from napari_isdnet.model.fusion import GROUPS, Fusion
from napari_isdnet.model.isdnet import ISDNet
from napari_isdnet.model.layers import Place
from tests.network_tools import lively, small

FUSIONS = ("raf", "raf_single", "add", "cat", "add_ca", "cat_ca")
# One entry a row of the paper's Tables 4 to 7, and one an option of our own.
NETWORKS: dict[str, dict[str, Any]] = {
    **{f"table 6 {name}": {"fusion": name} for name in FUSIONS},
    **{f"table 6 {name}, paper": {"fusion": name, "flavour": "paper"} for name in ("raf", "raf_single", "cat_ca")},
    "table 5 deep alone, quarter": {"branches": "deep"},
    "table 5 deep alone, full": {"branches": "deep", "downscale": 1},
    "table 5 shallow alone, quarter": {"branches": "shallow"},
    "table 5 shallow alone, full": {"branches": "shallow", "downscale": 1},
    "table 5 deep alone, paper": {"branches": "deep", "flavour": "paper"},
    "table 4 resnet50": {"deep": "resnet50"},
    "table 4 pspnet": {"deep_head": "pspnet"},
    "table 4 segformer": {"deep": "mit_b0", "deep_head": "segformer"},
    "table 7 rgb": {"shallow_input": "rgb"},
    "one residual": {"residual_levels": 1},
    "three residuals": {"residual_levels": 3},
    "stdc2": {"shallow": "stdc2"},
    "deep stride 16": {"deep_stride": 16},
    "deep stride 16, timm": {"deep": "tf_efficientnet_lite0", "deep_stride": 16},
    "lowpass": {"deep_filter": "lowpass"},
    "half scale": {"downscale": 2},
    "cheap": {"context_first": True, "shallow_kernel": 1},
    "sampled distillation": {"distillation": "sampled", "distillation_points": 5},
    "no distillation": {"distillation": None},
    "no super-resolution": {"super_resolution": False},
    "no auxiliary heads": {"auxiliary": False},
    "channels last in timm": {"deep": "convnext_atto"},
    "squeeze and excite": {"deep": "mobilenetv3_small_050"},
}
LIKE_OTHERS = {
    *(f"table 6 {name}" for name in ("raf_single", "add", "cat", "add_ca")),
    *(f"table 6 {name}, paper" for name in ("raf_single", "cat_ca")),
    "table 5 deep alone, quarter", "table 5 deep alone, paper", "table 4 resnet50", "one residual", "three residuals",
    "stdc2", "half scale", "deep stride 16, timm",
}  # fmt: skip
"""Networks of parts that another entry trains too, in another size or number."""
SIZE = (70, 106)  # no multiple of 32, and one whose nearest pixels depend on rounding


def config_of(changes: dict[str, Any]) -> ISDNetConfig:
    return small(changes.get("flavour", "reference"), 3, **{k: v for k, v in changes.items() if k != "flavour"})


def expected_losses(config: ISDNetConfig) -> set[str]:
    wanted, deep = {"seg", "total"}, config.branches != "shallow"
    if config.auxiliary and deep:
        wanted |= {"aux_deep", "aux_stage"} | ({"aux16", "aux8"} if config.fuses else set())
    if config.super_resolution and deep:
        wanted |= {"super_resolution"} | ({"distillation"} if config.distillation else set())
    return wanted


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name in LIKE_OTHERS else []) for name in NETWORKS]
)
def test_runs_and_trains(name: str) -> None:
    config = config_of(NETWORKS[name])
    model = lively(config)
    x = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = model(x, features=True)
        assert torch.equal(model(x).logits, output.logits)  # looking inside changes nothing
    assert output.logits.shape == (2, 3, *SIZE)
    assert output.logits.isfinite().all()
    assert output.logits.std() > 0
    assert output.features is not None
    assert all(value.isfinite().all() for value in output.features.values())

    target = torch.arange(2 * SIZE[0] * SIZE[1]).view(2, *SIZE) % 4
    target[target == 3] = 255
    model.train()
    losses = model.losses(x, target)
    assert set(losses) == expected_losses(config)
    assert all(value.isfinite() for value in losses.values())
    terms = sum(float(value.detach()) for key, value in losses.items() if key != "total")
    assert float(losses["total"].detach()) == pytest.approx(terms, rel=1e-5)
    losses["total"].backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, f"nothing reaches {key}"
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize(
    "name",
    [
        "table 6 raf",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("table 6 cat_ca", "table 5 deep alone, full", "table 7 rgb")
        ),
    ],
)
def test_dropping_the_training_heads_changes_no_logit(name: str) -> None:
    config = config_of(NETWORKS[name])
    full = lively(config)
    plain = ISDNet(config.inference()).eval()
    plain.load_state_dict({k: v for k, v in full.state_dict().items() if k in plain.state_dict()})
    assert len(plain.state_dict()) < len(full.state_dict())
    x = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        assert torch.equal(plain(x).logits, full(x).logits)


def test_features_have_the_names_and_strides_that_are_documented() -> None:
    model = lively(small(classes=3))
    with torch.no_grad():
        features = model(torch.randn(1, 3, 100, 132), features=True).features
    c, s8, s16 = 32, (13, 17), (7, 9)
    assert {key: tuple(value.shape[1:]) for key, value in features.items()} == {
        "residuals": (6, 100, 132),
        "shallow8": (128, *s8),
        "shallow16": (256, *s16),
        "deep": (c, 4, 5),
        "fused16": (c, *s16),
        "fused8": (c, *s8),
        **{f"M_{branch}{stride}": (c,) for branch in "sd" for stride in (8, 16)},
        "R8": (GROUPS, GROUPS),
        "R16": (GROUPS, GROUPS),
    }


def test_one_branch_alone_is_the_other_ones_features_set_to_zero() -> None:
    """By hand: whole attention, one summand of each sum missing, the same head."""
    model = lively(small(classes=3))
    x = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        f = model(x, features=True).features
        answers = {branch: model.coarse_logits(x, branch) for branch in ("both", "shallow", "deep")}
        _, _, first = model.fuse16(f["shallow16"], f["deep"])
        _, _, second = model.fuse8(f["shallow8"], f["fused16"])

        def sums(s: torch.Tensor, d: torch.Tensor, fusion: Fusion, gates: Any, drop: str) -> torch.Tensor:
            s, d = fusion.project_shallow(s), fusion.project_deep(d)
            context = fusion.context_conv(
                F.interpolate(d * gates.deep, size=s.shape[2:], mode="bilinear", align_corners=False)
            )
            return fusion.smooth(
                (0 * s if drop == "s" else s * gates.shallow) + (0 * context if drop == "d" else context)
            )

        deep = sums(f["shallow8"], sums(f["shallow16"], f["deep"], model.fuse16, first, "s"), model.fuse8, second, "s")
        shallow = sums(
            f["shallow8"], sums(f["shallow16"], f["deep"], model.fuse16, first, "d"), model.fuse8, second, ""
        )
        torch.testing.assert_close(answers["deep"], model.classifier(deep), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(answers["shallow"], model.classifier(shallow), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(answers["both"], answers["deep"])
    assert not torch.allclose(answers["both"], answers["shallow"])


def test_relation_aware_fusion_is_equations_2_to_5() -> None:
    """The paper's flavour in numpy: pooling, 1x1 convolutions, the relation of 16 groups, the gates."""
    fusion = lively(small("paper", 3)).fuse8
    fusion.alpha_shallow.data.fill_(0.7)
    rng = np.random.default_rng(3)
    s, d = rng.normal(size=(2, 32, 6, 8)), rng.normal(size=(2, 32, 3, 4))
    weights = {key: value.detach().double().numpy() for key, value in fusion.state_dict().items()}
    vectors = {}
    for name, value in (("shallow", s), ("deep", d)):
        matrix = weights[f"{name}_gate.conv.weight"][:, :, 0, 0]
        vectors[name] = value.mean((2, 3)) @ matrix.T + weights[f"{name}_gate.conv.bias"]  # Eq. 2
    m_s, m_d = (vectors[name].reshape(2, GROUPS, -1) for name in ("shallow", "deep"))
    relation = m_s @ m_d.transpose(0, 2, 1)  # Eq. 3
    gates = {}
    for name in ("shallow", "deep"):
        hidden = relation.reshape(2, -1) @ weights[f"{name}_mlp.0.weight"].T + weights[f"{name}_mlp.0.bias"]
        out = np.maximum(hidden, 0) @ weights[f"{name}_mlp.2.weight"].T + weights[f"{name}_mlp.2.bias"]
        gates[name] = 1 / (1 + np.exp(-(vectors[name] + 0.7 * out)))  # Eq. 4
    with torch.no_grad():
        attention = fusion.attend(torch.tensor(s).float(), torch.tensor(d).float())
    np.testing.assert_allclose(attention.relation, relation, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(attention.shallow[..., 0, 0], gates["shallow"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(attention.deep[..., 0, 0], gates["deep"], rtol=1e-4, atol=1e-6)
    with torch.no_grad():  # Eq. 5: gated, enlarged, added, smoothed
        deep = F.interpolate(
            torch.tensor(d).float() * attention.deep, size=(6, 8), mode="bilinear", align_corners=False
        )
        expected = fusion.smooth(torch.tensor(s).float() * attention.shallow + deep)
        place, out = Place.whole(torch.tensor(d)), Place.whole(torch.tensor(s))
        context = fusion.context(torch.tensor(d).float(), attention.deep, place, out)
        torch.testing.assert_close(fusion.combine(torch.tensor(s).float(), attention.shallow, context), expected)


def test_the_deep_input_of_each_flavour() -> None:
    x = torch.randn(1, 3, 106, 134)
    reference, paper = ISDNet(small(classes=3)), ISDNet(small("paper", 3))
    assert torch.equal(reference.deep_input(x), F.interpolate(x, size=(26, 33), mode="nearest"))
    assert paper.deep_input(x).shape[2:] == paper.deep_size(106, 134) == (27, 34)
    # Low-passed: a checkerboard vanishes, every n-th pixel of it does not.
    board = ((torch.arange(64)[:, None] + torch.arange(64)) % 2 * 2.0 - 1).expand(1, 3, 64, 64)
    assert paper.deep_input(board).abs().max() < 1e-6
    assert reference.deep_input(board).abs().min() == 1


# ------------------------------------------------------------------------------------------------- losses


def test_losses_without_a_label_leave_those_that_need_none() -> None:
    model = lively(small(classes=3)).train()
    losses = model.losses(torch.randn(2, 3, 64, 64), torch.full((2, 64, 64), 255))
    assert all(losses[key] == 0 for key in ("seg", "aux_deep", "aux16", "aux8", "aux_stage"))
    assert losses["super_resolution"] > 0
    assert losses["distillation"] > 0


@pytest.mark.parametrize("over_all", [False, True])
def test_segmentation_loss_by_hand(over_all: bool) -> None:
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(2, 3, 8, 8)), rng.integers(0, 3, (2, 8, 8))
    target[0, :3] = 255
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    each = [-np.log(p[b, target[b, r, c], r, c]) for b, r, c in np.argwhere(target != 255)]
    wanted = sum(each) / (target.size if over_all else len(each))
    got = segmentation_loss(torch.tensor(logits), torch.tensor(target), over_all=over_all)
    assert float(got) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("per_pixel", [False, True])
def test_distillation_is_the_mean_distance_of_similarities(per_pixel: bool) -> None:
    rng = np.random.default_rng(1)
    deep, teacher = rng.normal(size=(2, 2, 6, 4, 5))
    axis = 1 if per_pixel else 2
    flat = [v.reshape(2, 6, 20) for v in (deep, teacher)]
    unit = [v / np.linalg.norm(v, axis=axis, keepdims=True) for v in flat]
    similar = [np.einsum("bci,bcj->bij", v, v) for v in unit]
    got = distillation_loss(torch.tensor(deep), torch.tensor(teacher), per_pixel=per_pixel)
    assert float(got) == pytest.approx(np.abs(similar[0] - similar[1]).mean(), rel=1e-4)


def test_sampled_distillation_is_bounded_and_near_the_exact_one() -> None:
    g = torch.Generator().manual_seed(0)
    deep, teacher = torch.randn(1, 8, 40, 40, generator=g), torch.randn(1, 8, 40, 40, generator=g)
    exact = float(distillation_loss(deep, teacher))
    assert float(distillation_loss(deep, teacher, points=1600)) == exact  # all fit: nothing is drawn
    torch.manual_seed(0)
    drawn = [float(distillation_loss(deep, teacher, points=400)) for _ in range(20)]
    # The diagonal weighs 1/400 instead of 1/1600 of the mean.
    assert np.mean(drawn) == pytest.approx(exact, rel=0.05)
    assert len(set(drawn)) > 1


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_classes": 0}, "num_classes must be 1 to 254, got 0"),
        ({"num_classes": 255}, "got 255"),
        ({"flavour": "mine"}, "flavour must be one of paper, reference"),
        ({"fusion": "sum"}, "fusion must be one of raf, raf_single"),
        ({"branches": "none"}, "branches must be one of both, deep, shallow"),
        ({"deep_stride": 4}, "deep_stride must be one of 8, 16, got 4"),
        ({"downscale": 3}, "downscale must be one of 1, 2, 4, 8"),
        ({"channels": 24}, "multiple of 16"),
        ({"residual_levels": 0}, "residual_levels must be 1 to 4"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"distillation": "some"}, "distillation must be one of exact, sampled, None"),
    ],
)
def test_impossible_configurations(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        replace(ISDNetConfig(5), **changes)


def test_backbones_that_do_not_fit_are_named() -> None:
    with pytest.raises(InputError, match="no backbone 'resnet18x' in timm; names that come near are"):
        ISDNet(small(deep="resnet18x"))
    with pytest.raises(InputError, match="gives features at strides"):
        ISDNet(small(deep="vit_tiny_patch16_224", deep_stride=8))


def test_images_that_do_not_fit_are_refused_in_one_sentence() -> None:
    model = lively(small(classes=3, branches="deep"))
    for x, words in (
        (torch.zeros(3, 64, 64), r"shape \(B, 3, H, W\), got \(3, 64, 64\)"),
        (torch.zeros(1, 4, 64, 64), r"got \(1, 4, 64, 64\)"),
        (torch.zeros(1, 3, 31, 64), "at least 32 pixels a side, got 31 x 64"),
    ):
        with pytest.raises(InputError, match=words):
            model(x)
    with pytest.raises(InputError, match="one branch only"):
        model(torch.zeros(1, 3, 64, 64), branch="deep")
    with pytest.raises(InputError, match=r"target \(1, 64, 32\) does not fit"):
        model.losses(torch.zeros(1, 3, 64, 64), torch.zeros(1, 64, 32, dtype=torch.int64))


def test_configurations_survive_json() -> None:
    config = ISDNetConfig.of("paper", 6, fusion="cat", distillation=None)
    assert ISDNetConfig.from_dict(config.to_dict()) == config
    with pytest.raises(InputError, match="unknown entries wings"):
        ISDNetConfig.from_dict({"num_classes": 3, "wings": 2})
    with pytest.raises(InputError, match="lacks num_classes"):
        ISDNetConfig.from_dict({})


def test_an_image_that_is_too_small_for_its_residuals_is_one_sentence() -> None:
    config = small(branches="shallow", downscale=8, residual_levels=2, auxiliary=False, super_resolution=False)
    model = ISDNet(config).eval()
    assert model(torch.zeros(1, 3, 48, 48)).logits.shape[2:] == (48, 48)
    with pytest.raises(InputError, match="2 levels of residuals of an image at 1/8 need more than 32 x 32 pixels"):
        model(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("stride", [8, 16])
def test_a_backbone_whose_list_of_stages_begins_later_gives_the_stride_that_is_asked_for(stride: int) -> None:
    """timm lists those of DLA from the second on, and counts from the first."""
    from napari_isdnet.model.deep import TimmBackbone
    from napari_isdnet.model.shallow import TimmShallow

    x = torch.zeros(1, 3, 64, 96)
    before, last = TimmBackbone("dla34", stride).eval()(x)
    assert last.shape[2:] == (64 // stride, 96 // stride)
    assert before.shape[2:] == (128 // stride, 192 // stride)
    assert [m.shape[2:] for m in TimmShallow("dla34", 3).eval()(x)] == [(8, 12), (4, 6)]
