"""IE-KD and IE-DML: distances and splits against NumPy, what each phase trains, silencing, resuming, composition."""

import numpy as np
import pytest
import tiny
import torch

from kd.errors import ConfigError
from kd.methods import Teachers
from kd.methods.attention import attention_distance
from kd.methods.factor import FT
from kd.methods.iekd import (
    IEDML,
    IEKD,
    Halves,
    both_terms,
    compare_halves,
    explore_loss,
    inherit_distance,
    linear_cka,
    represented,
    silenced,
    split_channels,
)
from kd.methods.kd import KD
from kd.methods.rco import RCO
from kd.models import Output, evaluate
from kd.training import distill

KINDS = ("l1", "l2", "cosine", "cka")


@pytest.fixture(scope="module")
def teacher():
    return tiny.teacher()


def cka(x, y):
    """By features, where ours goes by Gram matrices."""
    x, y = (a.reshape(len(a), -1) - a.reshape(len(a), -1).mean(0) for a in (x, y))
    return np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


# -- losses against NumPy


def test_distances():
    a, b = tiny.normal(6, 3, 4, 4), tiny.normal(6, 3, 4, 4, seed=1)
    u, v = tiny.unit(a.numpy()), tiny.unit(b.numpy())
    cosine = (u * v).sum(1)
    expected = {
        "l1": np.abs(u - v).mean(),
        "l2": np.sqrt(((u - v) ** 2).mean()),
        "cosine": 1 - cosine.mean(),
        "cka": 1 - cka(a.numpy(), b.numpy()),
    }
    explore = {
        "l1": -expected["l1"],
        "l2": -expected["l2"],
        "cosine": np.abs(cosine).mean(),
        "cka": cka(a.numpy(), b.numpy()),
    }
    for kind in KINDS:
        assert float(inherit_distance(a, b, kind)) == pytest.approx(expected[kind], abs=1e-12), kind
        assert float(explore_loss(a, b, kind)) == pytest.approx(explore[kind], abs=1e-12), kind


@pytest.mark.parametrize("kind", KINDS)
def test_to_inherit_is_least_and_to_explore_greatest_at_the_teacher_itself(kind):
    a, b = tiny.normal(6, 3, 4, 4), tiny.normal(6, 3, 4, 4, seed=1)
    assert float(inherit_distance(a, 3 * a, kind)) == pytest.approx(0, abs=1e-12)
    assert float(explore_loss(a, 3 * a, kind)) > float(explore_loss(b, a, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_exploring_cannot_run_away(kind):
    """However far the exploring part goes, its loss stays within the stated bounds."""
    target = tiny.normal(6, 3, 4, 4)
    for scale in (1e-3, 1.0, 1e6):
        value = float(explore_loss(scale * tiny.normal(6, 3, 4, 4, seed=1), target, kind))
        assert -2 / 48**0.5 <= value <= 1


def test_distances_of_unlike_sizes_are_taken_at_the_smaller():
    a, b = tiny.normal(6, 3, 2, 2), tiny.normal(6, 3, 4, 4, seed=1)
    small = torch.from_numpy(b.numpy().reshape(6, 3, 2, 2, 2, 2).mean((3, 5)))
    for kind in KINDS:
        assert float(inherit_distance(a, b, kind)) == pytest.approx(float(inherit_distance(a, small, kind)), abs=1e-12)
        assert float(explore_loss(b, a, kind)) == pytest.approx(float(explore_loss(small, a, kind)), abs=1e-12)


def test_linear_cka_sees_through_rotation_and_scale_only():
    a = tiny.normal(40, 8)
    rotation = torch.linalg.qr(tiny.normal(8, 8, seed=2))[0]
    assert float(linear_cka(a, 5 * a @ rotation + 1)) == pytest.approx(1, abs=1e-12)
    assert float(linear_cka(a, tiny.normal(40, 8, seed=1))) < 0.5
    assert float(linear_cka(a, torch.zeros(40, 8).double())) == 0  # no variance: nothing in common, and no nan


def test_gradients_are_finite_at_the_teacher_itself():
    for kind in KINDS:
        a = tiny.normal(3, 2, 2, 2).requires_grad_()
        (inherit_distance(a, a.detach().clone(), kind) + explore_loss(a, a.detach().clone(), kind)).backward()
        assert torch.isfinite(a.grad).all(), kind


def test_the_attention_carried_is_that_of_attention_transfer():
    a, b = tiny.normal(5, 6, 4, 4), tiny.normal(5, 3, 4, 4, seed=1)
    ours = inherit_distance(represented(a, None, "attention"), represented(b, None, "attention"), "l2")
    assert float(ours) ** 2 == pytest.approx(float(attention_distance(a, b)), abs=1e-12)


# -- the split


def test_splits():
    inherit, explore = split_channels(64, 0.5, "natural")
    assert inherit.tolist() == list(range(32)) and explore.tolist() == list(range(32, 64))
    torch.manual_seed(1)
    inherit, explore = split_channels(64, 0.25, "random")
    assert len(inherit) == 16 and sorted(inherit.tolist() + explore.tolist()) == list(range(64))
    assert inherit.tolist() != list(range(16))
    with pytest.raises(ConfigError, match=r"0.1 of 4 channels leaves a part empty"):
        split_channels(4, 0.1, "natural")


def test_each_part_sees_its_own_channels_only():
    for carry in ("factors", "features", "attention"):
        halves = Halves(8, 6, 3, 0.5, "natural", carry).double().eval()
        feature = tiny.normal(2, 8, 4, 4)
        other = feature.clone()
        other[:, 4:] = tiny.normal(2, 4, 4, 4, seed=9)
        (like, unlike), (like_too, unlike_too) = halves(feature), halves(other)
        assert torch.equal(like, like_too) and not torch.equal(unlike, unlike_too)
        assert like.shape == unlike.shape == (2, {"factors": 3, "features": 6, "attention": 1}[carry], 4, 4)


def test_rescaling_changes_nothing_at_the_authors_size():
    for carry, channels in (("factors", 32), ("features", 64), ("attention", 1)):
        for size, factor in ((8, 1.0), (2, 0.25)):
            parts, target = (
                [tiny.normal(2, channels, size, size, seed=i).abs() for i in (0, 1)],
                tiny.normal(2, channels, size, size, seed=2),
            )
            plain, scaled = (both_terms(parts, target, "l1", carry, rescale) for rescale in (False, True))
            assert [float(x) for x in scaled] == pytest.approx([factor * float(x) for x in plain])
    assert both_terms(parts, target, "cka", "factors", True) == both_terms(parts, target, "cka", "factors", False)


# -- the method


def test_terms_and_signs():
    student = Output(None, (tiny.normal(3, 8, 4, 4).float().requires_grad_(),))
    teacher = Output(None, (tiny.normal(3, 6, 4, 4, seed=1).float().requires_grad_(),))
    method = IEKD(inherit_weight=3, explore_weight=5, factor_channels=0.5)
    method.build(None, None, student, teacher)
    method.eval()
    assert [len(list(part.parameters())) > 0 for part in (method.halves, method.auto_encoders)] == [True, True]
    terms = method.loss(student, teacher, None)
    factor = method.auto_encoders[0].encoder(teacher.features[0])
    first, second = (
        e(student.features[0][:, p]) for e, p in zip(method.halves[0].encoders, (slice(4), slice(4, 8)), strict=True)
    )
    assert float(terms["inherit"].detach()) == pytest.approx(
        3 * float(inherit_distance(first, factor).detach()), rel=1e-6
    )
    assert float(terms["explore"].detach()) == pytest.approx(
        -5 * float(inherit_distance(second, factor).detach()), rel=1e-6
    )


def test_two_phases_and_nothing_else_moves(teacher):
    seen, before = [], tiny.snapshot(teacher)

    def keep(result, student):
        seen.append((result.last["phase"], tiny.snapshot(student), tiny.snapshot(method)))

    student, method = tiny.network(), IEKD(auto_encoder_epochs=0.5)
    result = distill(student, method, teacher, tiny.data(), tiny.RECIPE, after_epoch=keep)
    assert [phase for phase, *_ in seen] == ["auto-encoder"] * 2 + ["lesson"] * 4
    assert not tiny.changed(tiny.network(), seen[1][1])
    moved = {name for name in seen[0][2] if not torch.equal(seen[0][2][name], seen[1][2][name])}
    assert moved and all(name.startswith("auto_encoders") for name in moved)
    moved = tiny.changed(method, seen[1][2])
    assert moved and all(name.startswith("halves") for name in moved)
    assert not tiny.changed(teacher, before) and all(p.grad is None for p in teacher.parameters())
    assert result.curve[1]["loss"]["reconstruction"] < result.curve[0]["loss"]["reconstruction"]


def test_one_part_comes_nearer_and_the_other_goes_away(teacher):
    method = IEKD(inherit_weight=200, explore_weight=200, auto_encoder_epochs=0.5)
    result, _student, _knowledge = tiny.run(method, teacher, tiny.RECIPE.replace(epochs=12))
    first, last = (
        next(e for e in curve if e["phase"] == "lesson")["loss"] for curve in (result.curve, result.curve[::-1])
    )
    assert last["inherit"] < 0.9 * first["inherit"]
    assert last["explore"] < first["explore"] < 0
    measured = result.measured
    assert set(measured) == {"cka_inherit", "cka_explore", "without_inherit", "without_explore"}
    assert all(
        0 <= measured[f"cka_{part}"] <= 1 and 0 <= measured[f"without_{part}"] <= 100 for part in ("inherit", "explore")
    )


VARIANTS = {
    "factors": IEKD(),
    "random": IEKD(split="random", share=0.25),
    "attention": IEKD(carry="attention", distance="l2", taps="all"),
    "features": IEKD(carry="features", taps=[1, 2], rescale=True),
    "cosine": IEKD(distance="cosine", inherit_weight=1, explore_weight=1),
    "cka": IEKD(distance="cka", inherit_weight=1, explore_weight=1),
    "iedml": IEDML(),
    "iedml wide": IEDML(peer="cnn3x8", split_networks="student", update="simultaneous"),
    "iedml attention": IEDML(carry="attention", weight=0),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_composes_with_kd_and_a_route(name, teacher):
    method = VARIANTS[name]
    before = tiny.snapshot(teacher)
    result, *_ = tiny.run(RCO(anchors=2) * (method + KD()), Teachers(route=[tiny.network("cnn3x8", seed=9), teacher]))
    assert len(result.lessons) == 2
    assert {"logits", "inherit", "explore"} <= set(result.last["loss"])
    assert all(np.isfinite(value) for value in result.last["loss"].values())
    assert not tiny.changed(teacher, before)


@pytest.mark.parametrize("name", ["factors", "random", "iedml", "iedml wide"])
def test_resumed_to_the_bit(name, teacher, tmp_path):
    stops = (2, 3) if name == "factors" else (3,)  # 2: from what was saved after the auto-encoder's only epoch
    tiny.check_resume(VARIANTS[name], teacher, tmp_path, stops)


def test_random_channels_are_drawn_once_and_kept(teacher):
    _, _, first = tiny.run(IEKD(split="random"), teacher, tiny.RECIPE.replace(epochs=1))
    _, _, again = tiny.run(IEKD(split="random"), teacher, tiny.RECIPE.replace(epochs=1))
    assert first.halves[0].inherit.tolist() == again.halves[0].inherit.tolist() != list(range(8))
    assert "halves.0.inherit" in first.state_dict()


def test_the_same_channels_inherit_from_every_teacher(teacher):
    """The encoders between one split's draw and the next are as wide as the teacher's factors, and must not shift it."""
    seen, knowledge = [], IEKD(split="random", taps="all")
    distill(
        tiny.network(), RCO(anchors=2) * knowledge, [tiny.network("cnn3x4", seed=9), teacher], tiny.data(), tiny.RECIPE,
        after_lesson=lambda result, student: seen.append([halves.inherit.tolist() for halves in knowledge.halves]),
    )  # fmt: skip
    assert len(seen) == 2 and seen[0] == seen[1]


def test_the_parts_are_compared_on_test_images(teacher):
    student, data = tiny.network().eval(), tiny.data()
    halves = Halves(16, 32, 8, 0.5, "natural", "attention")
    images = torch.cat([batch.images for batch in data.chunks("test", 24)])
    with torch.no_grad():
        mine, theirs = (network(images).features[-1].double().numpy() for network in (student, teacher))
    found = compare_halves(halves, student, teacher, data)
    assert found["cka_inherit"] == pytest.approx(cka(mine[:, :8], theirs), rel=1e-4)
    assert found["cka_explore"] == pytest.approx(cka(mine[:, 8:], theirs), rel=1e-4)
    assert found["without_inherit"] == evaluate(silenced(student, torch.arange(8)), data, "test")


def test_a_student_without_a_head_is_compared_and_not_silenced(teacher):
    result = distill(tiny.Headless(), IEKD(), teacher, tiny.data(), tiny.RECIPE.replace(epochs=1))
    assert set(result.measured) == {"cka_inherit", "cka_explore"}


def test_silenced_channels_say_nothing():
    network, data = tiny.network(), tiny.data()
    images = next(iter(data.chunks("test", 8))).images
    mute = silenced(network, torch.arange(8))
    pooled = network(images).features[-1].mean((2, 3))
    expected = pooled[:, 8:] @ network.head.weight[:, 8:].T + network.head.bias
    torch.testing.assert_close(mute(images).logits, expected)
    assert float(network.head.weight.detach()[:, :8].abs().sum()) > 0  # the network itself is as it was
    everything = silenced(network, torch.arange(16))
    assert evaluate(everything, data) == pytest.approx(100 / 3, abs=0.1)  # bias alone: one class for every image
    with pytest.raises(ConfigError, match="channel 16: the head reads 16"):
        silenced(network, torch.tensor([16]))


def test_half_the_split_and_no_exploration_is_half_of_factor_transfer(teacher):
    """The inheriting term is FT's own on a part of the channels: with equal coders both give one number."""
    student = Output(None, (tiny.normal(3, 16, 2, 2).float(),))
    target = Output(None, (tiny.normal(3, 32, 2, 2, seed=1).float(),))
    method, ft = IEKD(inherit_weight=500).eval(), FT().eval()
    method.build(None, None, student, target)
    ft.build(None, None, Output(None, (student.features[0][:, :8],)), target)
    ft.load_state_dict(
        {f"auto_encoders.{k}": v for k, v in method.auto_encoders.state_dict().items()}
        | {f"translator.{k}": v for k, v in method.halves[0].encoders[0].state_dict().items()}
    )
    part = Output(None, (student.features[0][:, :8],))
    method.eval(), ft.eval()
    mine, theirs = method.loss(student, target, None)["inherit"], ft.loss(part, target, None)["factors"]
    assert float(mine.detach()) == pytest.approx(float(theirs.detach()))


# -- the mutual form


def test_mutual_learners_inherit_and_explore_on_both_sides():
    result, *_ = tiny.run(IEDML(), None)
    both = {"mutual", "inherit", "explore", "reconstruction", "labels"}
    assert set(result.last["loss"]) == both | {f"peer {name}" for name in both}
    assert {"peer_test", "cka_inherit", "without_explore"} <= set(result.measured)
    one, _, _knowledge = tiny.run(IEDML(split_networks="student"), None)
    assert "peer inherit" not in one.last["loss"] and "peer reconstruction" in one.last["loss"]
    assert "reconstruction" not in one.last["loss"]  # nobody looks at the student through an auto-encoder


def test_no_gradient_crosses_between_mutual_learners():
    _, student, knowledge = tiny.run(IEDML(), None, tiny.RECIPE.replace(epochs=1))
    images = next(iter(tiny.data().chunks("train", 8))).images
    mine, other = student.train()(images), knowledge.peer.train()(images)
    for module in (student, knowledge):
        module.zero_grad()
    sum(knowledge.mutual(mine, other, peer_learns=False).values()).backward()
    beside = {id(p) for module in knowledge.trained() for p in module.parameters()}
    touched = {id(p) for p in knowledge.parameters() if p.grad is not None}
    assert touched == beside and all(p.grad is None for p in knowledge.peer.parameters())
    assert student.stages[0][0].weight.grad is not None


def test_an_auto_encoder_beside_a_learner_does_not_pull_at_its_map():
    _, student, knowledge = tiny.run(
        IEDML(weight=0, inherit_weight=0, explore_weight=0), None, tiny.RECIPE.replace(epochs=1)
    )
    images = next(iter(tiny.data().chunks("train", 8))).images
    student.zero_grad()
    terms = knowledge.mutual(student.train()(images), knowledge.peer(images), peer_learns=False)
    assert float(terms["reconstruction"].detach()) > 0
    sum(terms.values()).backward()
    assert all(p.grad is None or not p.grad.any() for p in student.parameters())


def started_on_one_position(method):
    output = Output(torch.zeros(3, 3), (tiny.normal(3, 8, 1, 1),))
    method.build(None, None, output, output)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: IEKD(share=1), "iekd.share: 1 must be less than 1"),
        (lambda: IEKD(split="naturl"), "did you mean 'natural'"),
        (lambda: IEKD(inherit_weights=1), "did you mean 'inherit_weight'"),
        (lambda: IEDML(explore_weight=-1), "iedml.explore_weight: -1 must be greater than or equal to 0"),
        (lambda: IEDML(update="alternate"), "iedml.update: .*did you mean 'alternating'"),
        (lambda: tiny.run(IEKD(share=0.01), tiny.network("cnn3x8")), "leaves a part empty"),
        (lambda: started_on_one_position(IEKD(carry="attention")), "iekd: a map of one position has no attention"),
        (lambda: started_on_one_position(IEDML(carry="attention")), "iedml: a map of one position has no attention"),
    ],
)
def test_wrong_values(wrong, says):
    with pytest.raises(ConfigError, match=says):
        wrong()
