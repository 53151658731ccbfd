"""FitNet, AT and FT: losses against NumPy, what each phase trains, resuming, and composition."""

import numpy as np
import pytest
import tiny
import torch

from kd.errors import ConfigError
from kd.methods import Teachers, make
from kd.methods.attention import AT, attention, attention_distance
from kd.methods.factor import FT, AutoEncoder, Coder, balance, collapsed_distance, factor_distance, reconstruction_loss
from kd.methods.features import features_at, same_size
from kd.methods.hints import FitNet, build_regressor, hint_distance
from kd.methods.kd import KD
from kd.methods.rco import RCO
from kd.models import Output
from kd.training import distill


def pooled(array, size):
    """Average pooling to `size` where it divides the map evenly."""
    n, c, h, w = array.shape
    return array.reshape(n, c, size, h // size, size, w // size).mean((3, 5))


@pytest.fixture(scope="module")
def teacher():
    return tiny.teacher()


# -- losses against NumPy


def test_hint_distance_is_the_mean_square_over_every_entry_at_the_smaller_size():
    a, b = tiny.normal(5, 6, 4, 4), tiny.normal(5, 6, 8, 8, seed=1)
    expected = np.mean((a.numpy() - pooled(b.numpy(), 4)) ** 2)
    assert float(hint_distance(a, b)) == pytest.approx(expected, abs=1e-12)
    assert float(hint_distance(b, a)) == pytest.approx(expected, abs=1e-12)
    assert float(hint_distance(a, a)) == 0


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_attention_distance(power):
    a, b = tiny.normal(5, 6, 4, 4), tiny.normal(5, 3, 8, 8, seed=1)

    def attend(x):
        return tiny.unit((np.abs(x) ** power).mean(1))

    expected = np.mean((attend(a.numpy()) - attend(pooled(b.numpy(), 4))) ** 2)
    assert float(attention_distance(a, b, power)) == pytest.approx(expected, abs=1e-12)
    assert float(attention_distance(a, 3 * a, power)) == pytest.approx(0, abs=1e-12)
    assert attention(a, power).norm(dim=1).numpy() == pytest.approx(np.ones(5), abs=1e-12)


def test_attention_distance_stays_below_its_bound():
    a, b = torch.zeros(2, 1, 4, 4).double(), torch.zeros(2, 1, 4, 4).double()
    a[:, :, 0, 0], b[:, :, 3, 3] = 1, 1  # two networks that look at different single points
    assert float(attention_distance(a, b)) == pytest.approx(2 / 16, abs=1e-12)


@pytest.mark.parametrize("power", [1, 2])
def test_factor_distance(power):
    a, b = tiny.normal(5, 6, 4, 4), tiny.normal(5, 6, 8, 8, seed=1)
    difference = np.abs(tiny.unit(a.numpy()) - tiny.unit(pooled(b.numpy(), 4)))
    assert float(factor_distance(a, b, power)) == pytest.approx(np.mean(difference**power) ** (1 / power), abs=1e-12)
    assert float(factor_distance(a, 7 * a, power)) == pytest.approx(0, abs=1e-12)


def test_the_gradient_of_equal_factors_is_finite():
    a = tiny.normal(2, 3, 4, 4).requires_grad_()
    factor_distance(a, a.detach().clone(), 2).backward()
    assert torch.isfinite(a.grad).all()


def test_unrelated_factors_of_the_authors_size_lie_0025_apart():
    assert float(factor_distance(tiny.normal(64, 32, 8, 8), tiny.normal(64, 32, 8, 8, seed=1))) == pytest.approx(
        1.13 / 2048**0.5, rel=0.01
    )


def test_collapsed_distance():
    a, b = tiny.normal(5, 6, 4, 4), tiny.normal(5, 3, 4, 4, seed=1)
    expected = np.mean(np.abs(tiny.unit((a.numpy() ** 2).mean(1)) - tiny.unit((b.numpy() ** 2).mean(1))))
    assert float(collapsed_distance(a, b)) == pytest.approx(expected, abs=1e-12)


def test_reconstruction_is_the_mean_absolute_error_and_leaves_the_map_alone():
    coder, a = AutoEncoder(6, 3).double().eval(), tiny.normal(5, 6, 4, 4).requires_grad_()
    expected = np.mean(np.abs(coder(a)[1].detach().numpy() - a.detach().numpy()))
    loss = reconstruction_loss(coder, a)
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-12)
    loss.backward()
    assert a.grad is None and all(p.grad is not None for p in coder.parameters())


def test_the_coder_is_that_of_the_authors():
    torch.manual_seed(0)
    coder = Coder(64, 32)
    convolutions = [m for m in coder if isinstance(m, torch.nn.Conv2d)]
    assert [tuple(m.weight.shape[:2]) for m in convolutions] == [(64, 64), (32, 64), (32, 32)]
    assert all(m.bias is None and m.padding == (1, 1) and m.stride == (1, 1) for m in convolutions)
    assert isinstance(coder[0], torch.nn.LeakyReLU) and coder[0].negative_slope == 0.1
    for m in convolutions:
        assert float(m.weight.detach().std()) == pytest.approx((2 / (9 * m.out_channels)) ** 0.5, rel=0.03)
    assert coder(torch.randn(2, 64, 8, 8)).shape == (2, 32, 8, 8)


# -- where the maps are taken


def test_places():
    theirs, mine = [tiny.normal(1, c, 2, 2) for c in (1, 2, 3, 4)], [tiny.normal(1, c, 2, 2) for c in (5, 6, 7)]

    def channels(taps, a=theirs, b=mine):
        return [(t.shape[1], s.shape[1]) for t, s in features_at(taps, a, b)]

    assert channels("last") == [(4, 7)]
    assert channels("middle") == [(2, 6)]
    assert channels([0, -1]) == [(1, 5), (4, 7)]
    assert channels("all", mine, mine) == [(5, 5), (6, 6), (7, 7)]
    with pytest.raises(ConfigError, match="4 and 3 stages"):
        channels("all")
    with pytest.raises(ConfigError, match="tap 3: the student has 3 stages"):
        channels([3])


def test_same_size_leaves_equal_maps_alone():
    a, b = tiny.normal(2, 3, 4, 4), tiny.normal(2, 5, 4, 4)
    assert same_size(a, b)[0] is a and same_size(a, b)[1] is b


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: KD(-1.0), r"kd\.temperature: -1\.0 must be greater than 0"),
        (lambda: KD(alpha=1.5), r"kd\.alpha: 1\.5 must lie between 0 and 1"),
        (lambda: FitNet(taps="midle"), r"fitnet\.taps: 'midle' must be .*did you mean 'middle'"),
        (lambda: FitNet(taps=[0.5]), r"fitnet\.taps: \[0\.5\] must be 'last', 'middle', 'all', or a list of stage numbers"),
        (lambda: FitNet(kernel=2), r"fitnet\.kernel: 2 must be 1 or 3"),
        (lambda: FitNet(probe=True), "stage: initial"),
        (lambda: AT(power=0), r"at\.power: 0 must be greater than 0"),
        (lambda: AT(taps="last").build(None, None, *outputs(sizes=(4, 2, 1))), "at: a map of one position has no attention"),
        (lambda: FT(auto_encoder_epochs=0), r"ft\.auto_encoder_epochs: 0 must be greater than 0"),
        (lambda: make(["fitnet"], parameters={"fitnet": {"wieght": 1}}), "did you mean 'weight'"),
    ],
)
def test_wrong_values(wrong, says):
    with pytest.raises(ConfigError, match=says):
        wrong()


# -- the methods


def outputs(mine=(4, 8, 16), theirs=(8, 16, 32), sizes=(8, 4, 2)):
    student = tuple(tiny.normal(3, c, s, s, seed=c).float().requires_grad_() for c, s in zip(mine, sizes, strict=True))
    teacher = tuple(tiny.normal(3, c, s, s, seed=c + 1).float().requires_grad_() for c, s in zip(theirs, sizes, strict=True))
    return Output(torch.zeros(3, 3), student), Output(torch.zeros(3, 3), teacher)


def test_the_terms_carry_weight_and_taps():
    student, teacher = outputs()
    hints = FitNet(weight=7, taps=[0, 1], regressor="plain")
    hints.build(None, None, student, teacher)
    expected = sum(hint_distance(hints.regressors[i](student.features[i]), teacher.features[i]) for i in (0, 1))
    assert float(hints.loss(student, teacher, None)["hints"].detach()) == pytest.approx(7 * float(expected.detach()))
    parts = [float(attention_distance(s, t).detach()) for s, t in zip(student.features, teacher.features, strict=True)]
    assert float(AT(weight=5).loss(student, teacher, None)["attention"].detach()) == pytest.approx(5 * sum(parts))
    rescaled = AT(weight=5, rescale=True).loss(student, teacher, None)["attention"]
    assert float(rescaled.detach()) == pytest.approx(5 * sum(parts) * 4 / 64)  # last maps are 2x2
    assert balance(2048) == 1 and balance(128) == 0.25


def test_rescaled_factors():
    student, teacher = outputs()
    for collapse, factor in ((False, (16 * 4 / 2048) ** 0.5), (True, (4 / 64) ** 0.5)):
        values = []
        for rescale in (False, True):
            torch.manual_seed(0)
            ft = FT(collapse=collapse, rescale=rescale)
            ft.build(None, None, student, teacher)
            values.append(float(ft.eval().loss(student, teacher, None)["factors"].detach()))
        assert values[1] == pytest.approx(factor * values[0])


def test_regressors():
    assert [type(m).__name__ for m in build_regressor(4, 8, 1, "normed")] == ["Conv2d", "BatchNorm2d", "ReLU"]
    assert build_regressor(4, 8, 3, "plain")(tiny.normal(1, 4, 5, 5).float()).shape == (1, 8, 5, 5)


METHODS = {
    "fitnet": FitNet(),
    "fitnet initial": FitNet(stage="initial", taps="all", regressor="plain", weight=1, warm_up=0.5),
    "at": AT(),
    "ft": FT(auto_encoder_epochs=0.5),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_term_falls_and_the_teacher_stays(name, teacher):
    before = tiny.snapshot(teacher)
    result, _student, _knowledge = tiny.run(METHODS[name], teacher, tiny.RECIPE.replace(epochs=8))
    assert not tiny.changed(teacher, before)
    assert all(p.grad is None for p in teacher.parameters())
    phase = "hints" if name == "fitnet initial" else "lesson"
    term = {"at": "attention", "ft": "factors"}.get(name, "hints")
    values = [entry["loss"][term] for entry in result.curve if entry["phase"] == phase]
    assert values[-1] < 0.9 * values[0]


def test_hints_alone_train_the_student_first(teacher):
    seen = {}

    def keep(result, student):
        seen[len(result.curve)] = tiny.snapshot(student)

    method = FitNet(stage="initial", warm_up=0.5, taps="middle")
    result, _student, _knowledge = tiny.run(method, teacher, after_epoch=keep)
    assert [entry["phase"] for entry in result.curve] == ["hints"] * 2 + ["lesson"] * 4
    assert all(list(entry["loss"]) == ["labels"] for entry in result.curve[2:])
    during = tiny.changed(tiny.network(), seen[2])
    assert any(name.startswith("stages.1") and name.endswith("weight") for name in during)
    assert not [
        name for name in during if name.startswith("head") or name in ("stages.2.0.weight", "stages.2.1.weight")
    ]
    assert result.teacher_images == 2 * 44  # in the lessons nothing is learnt from the teacher
    inside, *_ = tiny.run(FitNet(stage="initial", warm_up=0.5, within_budget=True), teacher)
    assert [entry["phase"] for entry in inside.curve] == ["hints"] + ["lesson"] * 3  # of 4 epochs a third, as 0.5 beside 1


def test_the_hint_stage_of_srms_authors():
    recipe = tiny.Recipe(epochs=200, learning_rate=0.05, cycles=3, weight_decay=0)
    phase = next(FitNet(stage="initial", optimizer="adam").prepare(None, None, None, recipe, 0))
    assert (phase.recipe.epochs, phase.student_epochs) == (160, True)
    rates = [phase.recipe.learning_rate_at(epoch / 160) for epoch in (0, 29, 30, 129, 130, 159)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    assert (phase.recipe.optimizer, phase.recipe.weight_decay) == ("adam", 1e-4)
    assert list(FitNet(stage="initial").prepare(None, None, None, recipe, 1)) == []  # only before the first lesson
    assert FitNet(stage="initial", warm_up=0.8).warm_up(200) == (160, 0)
    assert FitNet(stage="initial", warm_up=0.8, within_budget=True).warm_up(360) == (160, 160)  # as many student epochs


def test_a_probe_trains_the_head_alone(teacher):
    seen = {}

    def keep(result, student):
        seen[len(result.curve)] = tiny.snapshot(student)

    _, student, _ = tiny.run(FitNet(stage="initial", warm_up=0.5, probe=True), teacher, after_epoch=keep)
    parameters = {name for name, _ in student.named_parameters()}
    assert tiny.changed(student, seen[2]) & parameters == {"head.weight", "head.bias"}


def test_a_probe_needs_a_head_before_anything_is_trained(teacher):
    student = tiny.Headless()
    with pytest.raises(ConfigError, match=r"fitnet\.probe: Headless has no \.head"):
        distill(student, FitNet(stage="initial", probe=True), teacher, tiny.data(), tiny.RECIPE)
    assert not tiny.changed(student, tiny.snapshot(tiny.Headless()))


def test_factors_are_trained_in_two_phases(teacher):
    seen = []

    def keep(result, student):
        seen.append((result.last["phase"], tiny.snapshot(student), tiny.snapshot(method)))

    student, method = tiny.network(), FT(auto_encoder_epochs=0.5)
    result = distill(student, method, teacher, tiny.data(), tiny.RECIPE, after_epoch=keep)
    assert [phase for phase, *_ in seen] == ["auto-encoder"] * 2 + ["lesson"] * 4
    assert not tiny.changed(tiny.network(), seen[1][1])  # the student has not moved during the first phase
    moved = {name for name in seen[0][2] if not torch.equal(seen[0][2][name], seen[1][2][name])}
    assert moved and all(name.startswith("auto_encoders") for name in moved)
    moved = tiny.changed(method, seen[1][2])
    assert moved and all(name.startswith("translator") for name in moved)
    assert result.teacher_images == 6 * 44
    assert result.extra_parameters == sum(p.numel() for p in method.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_resumed_to_the_bit(name, teacher, tmp_path):
    tiny.check_resume(
        METHODS[name] + KD(), teacher, tmp_path, stops=(2, 5) if name.startswith("f") and name != "fitnet" else (3,)
    )


@pytest.mark.parametrize("name", METHODS)
def test_composes_with_kd_and_a_route(name, teacher):
    route = [tiny.network("cnn3x8", seed=9), teacher]
    result, *_ = tiny.run(RCO(anchors=2) * (METHODS[name] + KD()), Teachers(route=route))
    lessons = [entry for entry in result.curve if entry["phase"] == "lesson"]
    assert len(result.lessons) == 2 and len(lessons) == 4
    assert all("logits" in entry["loss"] and np.isfinite(entry["test"]) for entry in lessons)


def test_a_teacher_with_other_sizes_and_channels():
    class Larger(torch.nn.Module):
        """Maps twice as large as the student's, with another number of channels."""

        def __init__(self):
            super().__init__()
            self.network = tiny.network("cnn3x8")

        def forward(self, images):
            return self.network(torch.nn.functional.interpolate(images, scale_factor=2))

    for name, method in METHODS.items():
        result, *_ = tiny.run(method, Larger(), tiny.RECIPE.replace(epochs=2))
        assert np.isfinite(result.last["test"]), name
