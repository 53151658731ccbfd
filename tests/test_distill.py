"""The loop: modes, gradients, schedules, and resuming to the bit."""

import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import kd
from kd.distill import Checkpoint, run_phase
from kd.errors import Problem
from kd.methods import Curriculum, Fixed, Knowledge, Labels, Learner, Lesson, Method, Phase, Teachers, make, resolved
from kd.methods.kd import KD, softened_divergence
from kd.methods.pwkd import PWKD
from kd.methods.rco import RCO
from kd.methods.srm import SRM
from kd.models import build, evaluate
from kd.recipe import Recipe

SHORT = Recipe(epochs=3, batch_size=32, learning_rate=0.05)


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- KD's loss -------------------------------------------------------------------------------------------------------------


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_softened_divergence_is_its_definition(temperature):
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(size=(2, 17, 11)) * 5
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    expected = temperature**2 * (p * (np.log(p) - np.log(q))).sum(1).mean()
    found = softened_divergence(torch.tensor(student), torch.tensor(teacher), temperature)
    assert abs(found.item() - expected) < 1e-9
    assert abs(softened_divergence(torch.tensor(teacher), torch.tensor(teacher), temperature).item()) < 1e-12


def test_kd_gradient_at_high_temperature_is_that_of_matching_logits():
    # Hinton et al., section 2.1: for zero-mean logits and T -> infinity the gradient tends to (z_s - z_t) / (N C)
    z_s, z_t = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z_s, z_t = z_s - z_s.mean(1, keepdim=True), z_t - z_t.mean(1, keepdim=True)
    z_s.requires_grad_()
    (gradient,) = torch.autograd.grad(softened_divergence(z_s, z_t, 1e5), z_s)
    assert torch.allclose(gradient, (z_s - z_t) / (6 * 5), atol=1e-4)


def test_kd_weights_the_labels(digits, networks):
    teacher, student = networks
    result = kd.distill(student, KD(alpha=0.7), teacher, digits, SHORT.but(epochs=1))
    assert set(result.last["loss"]) == {"logits", "labels"}
    assert KD(alpha=0.7).label_weight == pytest.approx(0.3)
    assert KD(alpha=2.0, label_weight=1.0).label_weight == 1.0
    for wrong in ({"temperature": 0}, {"alpha": 1.5}, {"alpha": -0.1}):
        with pytest.raises(Problem, match="kd\\."):
            KD(**wrong)


# --- modes and gradients ----------------------------------------------------------------------------------------------------


class Watching(KD):
    """KD that notes, at every step, the modes of both networks."""

    def begin(self, student, teacher):
        self.student, self.teacher, self.modes = [student], [teacher], []

    def loss(self, student, teacher, labels):
        self.modes.append((self.student[0].training, self.teacher[0].training, teacher.logits.requires_grad))
        return super().loss(student, teacher, labels)


def test_teacher_evaluates_and_student_trains_at_every_step(digits, networks):
    teacher, student = networks
    teacher.train()  # as a user may well hand it over
    method = Watching()
    method.begin(student, teacher)
    before = weights(teacher)
    kd.distill(student, method, teacher, digits, SHORT)
    assert len(method.modes) == SHORT.epochs * digits.steps(SHORT.batch_size)
    assert set(method.modes) == {(True, False, False)}
    assert same(before, weights(teacher))
    assert all(p.grad is None for p in teacher.parameters())


def test_evaluation_leaves_the_mode_and_the_statistics_alone(digits, networks):
    _, student = networks
    student.train()
    before = weights(student)
    accuracy = evaluate(student, digits, "test")
    assert student.training and same(before, weights(student))
    student.eval()
    with torch.no_grad():
        right = sum((student(b.images).logits.argmax(1) == b.labels).sum().item() for b in digits.chunks("test", 7))
    assert accuracy == pytest.approx(100 * right / len(digits.labels["test"]))


def test_loss_of_an_epoch_is_the_mean_over_images(digits, networks):
    _, student = networks
    copy = build("cnn3x4", 10, 1)
    copy.load_state_dict(student.state_dict())
    seen = []
    # a learning rate so small that the weights stand still; train mode, as the loop has it
    run_phase(
        Phase("x", [Learner([student], lambda i, y: {"ce": F.cross_entropy(student(i).logits, y)})], SHORT.but(epochs=1, learning_rate=1e-30)),
        digits, 5, after_epoch=lambda epoch, optimizers, means: seen.append(means["ce"]),
    )  # fmt: skip
    copy.train()
    total = sum(F.cross_entropy(copy(b.images).logits, b.labels, reduction="sum").detach() for b in digits.batches(5, 0, 32))
    assert seen[0] == pytest.approx(float(total) / len(digits.labels["train"]), rel=1e-5)


def test_same_seed_same_bits_and_other_seed_other_bits(digits):
    def run(seed):
        torch.manual_seed(1)
        student = build("cnn3x4", 10, 1)
        kd.train(student, digits, SHORT, seed)
        return weights(student)

    assert same(run(0), run(0))
    assert not same(run(0), run(1))


def test_methods_of_one_seed_see_the_same_batches(digits, networks):
    class Recording(Labels):
        def see(self, images):
            self.seen.append(images.clone())

    class RecordingKD(KD):
        see = Recording.see

    a, b = Recording(), RecordingKD()
    a.seen, b.seen = [], []
    teacher, student = networks
    kd.distill(student, a, None, digits, SHORT, seed=3)
    kd.distill(build("cnn3x4", 10, 1), b, teacher, digits, SHORT, seed=3)
    assert len(a.seen) == len(b.seen) and all(torch.equal(x, y) for x, y in zip(a.seen, b.seen, strict=True))


def test_training_helps(digits):
    torch.manual_seed(0)
    student = build("cnn3x8", 10, 1)
    before = evaluate(student, digits)
    result = kd.train(student, digits, Recipe(epochs=15, learning_rate=0.1, batch_size=32))
    assert result.last["test"] > before + 30
    assert result.curve[-1]["loss"]["labels"] < result.curve[0]["loss"]["labels"]


def test_a_loss_that_diverges_is_named(digits, networks):
    _, student = networks
    with pytest.raises(Problem, match=r"not finite .* lower recipe.learning_rate"):
        kd.train(student, digits, SHORT.but(learning_rate=1e30, epochs=5))


def test_bf16_trains_and_losses_stay_fp32(digits, networks):
    class Types(KD):
        def loss(self, student, teacher, labels):
            assert student.logits.dtype == teacher.logits.dtype == torch.float32
            assert all(f.dtype == torch.float32 for f in (*student.features, *teacher.features))
            return super().loss(student, teacher, labels)

    teacher, student = networks
    result = kd.distill(student, Types(), teacher, digits, SHORT.but(precision="bf16"))
    assert math.isfinite(result.last["loss"]["logits"])
    assert all(p.dtype == torch.float32 for p in student.parameters())


def test_ones_own_network_is_distilled(digits, networks):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = torch.nn.Conv2d(1, 6, 3)
            self.linear = torch.nn.Linear(6, 10)

        def forward(self, images):
            return self.linear(self.convolution(images).relu().mean((2, 3)))

    teacher, _ = networks
    student = kd.Tapped(Own(), ["convolution"])
    result = kd.distill(student, KD(), teacher, digits, SHORT)
    assert len(result.curve) == 3


# --- schedules ----------------------------------------------------------------------------------------------------------------


def test_step_schedule_has_the_papers_epochs():
    recipe = Recipe()
    rates = [recipe.rate(epoch / 240) for epoch in range(240)]
    expected = [0.05] * 150 + [0.005] * 30 + [0.0005] * 30 + [0.00005] * 30
    assert np.allclose(rates, expected, rtol=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "triangular", "constant"])
def test_other_schedules(schedule):
    recipe = Recipe(schedule=schedule, learning_rate=0.2)
    rates = np.array([recipe.rate(p) for p in np.linspace(0, 1, 101)[:-1]])
    p = np.linspace(0, 1, 101)[:-1]
    expected = {"cosine": 0.1 * (1 + np.cos(np.pi * p)), "triangular": 0.002 + 0.198 * (1 - abs(2 * p - 1)), "constant": 0.2 + 0 * p}
    assert np.allclose(rates, expected[schedule])
    twice = Recipe(schedule=schedule, learning_rate=0.2, cycles=2)
    assert twice.rate(0.6) == pytest.approx(recipe.rate(0.2))


def test_recipe_refuses_what_it_does_not_know():
    with pytest.raises(Problem, match=r"unknown key 'learning_rat' \(did you mean 'learning_rate'\?\)"):
        Recipe.of({"learning_rat": 1})
    for wrong in ({"epochs": -1}, {"schedule": "stepp"}, {"precision": "fp16"}, {"milestones": [1.5]}, {"learning_rate": 0}):
        with pytest.raises(Problem, match=next(iter(wrong))):
            Recipe(**wrong)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"nesterov": "no"}, "recipe.nesterov: 'no' must be true or false"),
        ({"learning_rate": "1e-3"}, "recipe.learning_rate: '1e-3' must be a number"),
        ({"weight_decay": math.nan}, "recipe.weight_decay: nan must be a number"),
        ({"epochs": 2.5}, "recipe.epochs: 2.5 must be a whole number"),
        ({"milestones": ["half"]}, "recipe.milestones: 'half' must be a number"),
        ({"milestones": 0.5}, "recipe.milestones: 0.5 must be a list"),
        ({"momentum": -1}, "recipe.momentum: -1 is out of range"),
        ({"nesterov": True, "momentum": 0}, "recipe.nesterov: True is out of range"),
        ({"gamma": 0}, "recipe.gamma: 0 is out of range"),
    ],
)
def test_a_recipe_refuses_values_of_another_kind_or_range(wrong, words):
    with pytest.raises(Problem, match=words):
        Recipe(**wrong)


@pytest.mark.parametrize(
    ("name", "wrong", "words"),
    [
        ("at", {"weight": None}, "at.weight: None must be a number"),
        ("kd", {"temperature": "1e-3"}, "kd.temperature: '1e-3' must be a number"),
        ("kd", {"alpha": True}, "kd.alpha: True must be a number"),
        ("srm", {"drift": "no"}, "srm.drift: 'no' must be true or false"),
    ],
)
def test_a_method_refuses_values_of_another_kind(name, wrong, words):
    for refuse in (lambda: resolved([name], {name: wrong}), lambda: make([name], parameters={name: wrong})):
        with pytest.raises(Problem, match=words):
            refuse()


class TwoLessons(Curriculum):
    def __init__(self, restart):
        self.restart = restart

    def next(self, done, epochs, teachers, student, data):
        return Lesson("route", (len(done),), epochs // 2, restart=self.restart) if len(done) < 2 else None


def rates_of(method, teachers, student, data, recipe, monkeypatch):
    found, original = [], Recipe.rate

    def rate(self, progress):
        found.append(original(self, progress))
        return found[-1]

    monkeypatch.setattr(Recipe, "rate", rate)
    kd.distill(student, method, teachers, data, recipe)
    return found


def test_lessons_restart_the_schedule_or_continue_it(digits, networks, monkeypatch):
    teacher, _ = networks
    teachers, recipe = Teachers(route=[teacher, teacher]), SHORT.but(epochs=4, schedule="cosine")
    steps = digits.steps(recipe.batch_size)

    def rates(restart):
        return rates_of(Method(TwoLessons(restart), KD()), teachers, build("cnn3x4", 10, 1), digits, recipe, monkeypatch)

    once = [0.025 * (1 + math.cos(math.pi * s / (4 * steps))) for s in range(4 * steps)]
    again = [0.025 * (1 + math.cos(math.pi * s / (2 * steps))) for s in range(2 * steps)] * 2
    assert rates(False) == pytest.approx(once)
    assert rates(True) == pytest.approx(again)


def test_lessons_without_restart_equal_one_long_lesson(digits, networks):
    # the same teacher twice, no restart: momentum, schedule and batches go on as if there were one lesson
    teacher, _ = networks
    found = []
    for curriculum in (TwoLessons(False), Fixed()):
        torch.manual_seed(0)
        student = build("cnn3x4", 10, 1)
        kd.distill(student, Method(curriculum, KD()), Teachers(route=[teacher, teacher]), digits, SHORT.but(epochs=4))
        found.append(weights(student))
    assert same(*found)


def test_sums_and_names(digits):
    both = KD(alpha=0.9) + Labels()
    assert both.label_weight == pytest.approx(0.1) and len(both.parts()) == 2
    assert (KD(alpha=0.9) + KD(alpha=0.5)).label_weight == (KD(alpha=0.5) + KD(alpha=0.9)).label_weight == pytest.approx(0.1)
    with pytest.raises(Problem, match=r"unknown method 'kdd' \(did you mean 'kd'\?\)"):
        make(["kdd"])
    with pytest.raises(Problem, match=r"kd: unknown parameter 'temprature' \(did you mean 'temperature'\?\)"):
        make(["kd"], parameters={"kd": {"temprature": 1}})
    for nobody in (None, Teachers()):
        with pytest.raises(Problem, match="KD needs a teacher"):
            kd.distill(build("cnn3x4", 10, 1), KD(), nobody, digits, SHORT)
    with pytest.raises(Problem, match="needs a supernet"):
        kd.distill(build("cnn3x4", 10, 1), Method(Fixed("supernet"), KD()), Teachers(route=[build("cnn3x4", 10, 1)]), digits, SHORT)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: KD() + RCO(), r"KD\(\) \+ RCO.*: only knowledge adds"),
        (lambda: SRM() + RCO() * KD(), r"only knowledge adds; a curriculum multiplies it: RCO\(\) \* \(KD\(\) \+ SRM\(\)\)"),
        (lambda: RCO() + KD(), r"RCO\(\) \+ KD.*: a curriculum multiplies knowledge"),
        (lambda: KD() * RCO(), r"KD\(\) \* RCO.*: the curriculum comes first"),
        (lambda: RCO() * KD() + SRM(), "put brackets around the sum"),
        (lambda: PWKD() * RCO(), r"PWKD\(\) \* RCO.*: a curriculum multiplies knowledge"),
    ],
)
def test_what_neither_adds_nor_multiplies_says_what_would(mistake, words):
    with pytest.raises(Problem, match=words):
        mistake()


def test_a_list_of_networks_is_a_route(digits, networks):
    teacher, student = networks
    assert Teachers.of([student, teacher])["route"] == [student, teacher]
    early, late = build("cnn3x4", 10, 1), build("cnn3x4", 10, 1)
    late.load_state_dict(early.state_dict())
    kd.distill(early, KD(), [student, teacher], digits, SHORT)
    kd.distill(late, KD(), teacher, digits, SHORT)
    assert same(weights(early), weights(late))  # the converged one is the last


# --- networks that will not do ------------------------------------------------------------------------------------------------


def test_a_network_that_has_taught_is_frozen(digits, networks):
    teacher, student = networks
    kd.distill(student, KD(), teacher, digits, SHORT.but(epochs=1))
    with pytest.raises(Problem, match=r"has taught is frozen, call network.requires_grad_\(True\)"):
        kd.train(teacher, digits, SHORT)
    kd.train(teacher.requires_grad_(True), digits, SHORT.but(epochs=1))


def test_a_last_batch_of_one_image_is_named(digits):
    layers = torch.nn.Conv2d(1, 4, digits.image_shape[1]), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(4, 10)
    student, count = kd.Tapped(torch.nn.Sequential(*layers), ["1"]), len(digits.labels["train"])
    with pytest.raises(Problem, match=r"single image.*recipe\.batch_size"):
        kd.train(student, digits, SHORT.but(batch_size=count - 1))
    kd.train(student, digits, SHORT.but(batch_size=count - 2, epochs=1))


def test_logits_must_be_as_many_as_classes(digits, networks):
    teacher, _ = networks
    with pytest.raises(Problem, match="the student gives 9 logits, and the data have 10 classes"):
        kd.train(build("cnn3x4", 9, 1), digits, SHORT)
    with pytest.raises(Problem, match="the teacher tells 10 classes apart and the student 11"):
        kd.distill(build("cnn3x4", 11, 1), KD(), teacher, digits, SHORT)


def test_plain_logits_are_not_enough(digits, networks):
    _, student = networks
    plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    for refuse in (
        lambda: kd.train(plain, digits, SHORT),
        lambda: kd.distill(student, KD(), plain, digits, SHORT),
        lambda: evaluate(plain, digits),
    ):
        with pytest.raises(Problem, match=r"Sequential gives Tensor, .* wrap it: kd\.Tapped"):
            refuse()


# --- resuming -----------------------------------------------------------------------------------------------------------------


class WithModules(Knowledge):
    """Needs a preparing phase and a module that learns beside the student: everything a checkpoint has to hold."""

    def start(self, student, teacher, mine, theirs):
        self.regressor = torch.nn.Conv2d(mine.features[-1].shape[1], theirs.features[-1].shape[1], 1)
        self.scale = torch.nn.Linear(1, 1)

    def prepare(self, student, teacher, data, recipe, lesson):
        def loss(images, labels):
            return {"scale": (self.scale(torch.ones(1, 1)) - 3).square().sum()}

        yield Phase("scale", [Learner([self.scale], loss)], recipe.but(epochs=2))

    def loss(self, student, teacher, labels):
        return {"hint": (self.regressor(student.features[-1]) - teacher.features[-1]).square().mean() * self.scale.weight.detach().sum()}

    def trained(self):
        return [self.regressor]


class Scored(Labels):
    """The labels alone, with scores made up beforehand, one an epoch that is a candidate."""

    def __init__(self, scores):
        super().__init__()
        self.scores = iter(scores)

    def score(self, entry):
        return next(self.scores)


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [([3, 1, 1, 2], 1), ([2, 2, 2, 2], 0), ([4, 3, 2, 1], 3), ([None, 5, None, 5], 1), ([None] * 4, None)],
)
def test_a_phase_ends_with_the_first_of_its_best_states(digits, scores, chosen):
    student, states = build("cnn3x4", 10, 1), []
    recipe = SHORT.but(epochs=4, milestones=(0.25, 0.5, 0.7))
    result = kd.distill(student, Scored(scores), None, digits, recipe, after_epoch=lambda result, network: states.append(weights(network)))
    assert [e.get("score") for e in result.curve] == scores and result.last.get("chosen") == chosen
    assert same(weights(student), states[3 if chosen is None else chosen])
    assert result.last["test"] == evaluate(student, digits, "test")


@pytest.mark.parametrize("chosen", [0, 1])
def test_momentum_goes_on_with_the_last_state_alone(digits, monkeypatch, chosen):
    remembered = []

    def watching(phase, data, seed, states, *rest):
        remembered.append(None if states is None else len(states[0]["state"]))
        return run_phase(phase, data, seed, states, *rest)

    monkeypatch.setattr(sys.modules["kd.distill"], "run_phase", watching)  # kd.distill itself is the function
    student, recipe = build("cnn3x4", 10, 1), SHORT.but(epochs=4, milestones=(0.25, 0.75))
    scores = [[1, 2], [2, 1]][chosen] + [2, 1]
    result = kd.distill(student, Method(TwoLessons(False), Scored(scores)), None, digits, recipe)
    assert [e.get("chosen") for e in result.curve] == [None, chosen, None, 3]
    assert remembered == [None, chosen * len(list(student.parameters()))]


def test_a_sum_scores_as_its_first_part_with_an_opinion():
    total = Labels() + Scored([None, 2]) + Scored([1])
    assert [total.score({}), total.score({}), (Labels() + KD()).score({})] == [1, 2, None]


def test_stretches_of_the_learning_rate_end_at_milestones():
    def ends(epochs, span=(0.0, 1.0), **recipe):
        phase = Phase("", [], SHORT.but(epochs=epochs, **recipe), span)
        return [epoch for epoch in range(1, epochs + 1) if phase.ends_stretch(epoch)]

    assert ends(240, milestones=(0.625, 0.75, 0.875)) == [150, 180, 210, 240]
    assert ends(20, milestones=(0.625, 0.75, 0.875)) == [13, 15, 18, 20]  # 12.5 and 17.5 lie within an epoch
    assert ends(4, milestones=(0.625, 0.7)) == [3, 4] and ends(1, milestones=(0.5,)) == [1]
    assert ends(6, span=(0.5, 0.8), milestones=(0.4, 0.6, 0.8)) == [2, 6]  # 0.8 is the end of the phase
    assert ends(6, milestones=(0.5,), cycles=2) == [2, 3, 5, 6]  # 1.5 of 3 epochs, then the rate rises again
    assert all(ends(5, schedule=other) == [5] for other in ("cosine", "triangular", "constant"))


class Stop(Exception):
    pass


@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize("stop_after", [1, 2, 3, 4, 5, 6, 7])
def test_an_interrupted_run_ends_in_the_same_bits(digits, networks, tmp_path, restart, stop_after):
    teacher, _ = networks

    def run(checkpoint=None, stop=None):
        torch.manual_seed(0)
        student, knowledge = build("cnn3x4", 10, 1), WithModules() + KD()
        dropout = torch.nn.Dropout(0.3)  # draws random numbers, whose state must survive
        student.head.register_forward_pre_hook(lambda module, inputs: dropout.train(module.training)(inputs[0]))

        def after(result, _):
            if stop and len(result.curve) == stop:
                raise Stop

        result = None
        try:
            result = kd.distill(student, Method(TwoLessons(restart), knowledge), Teachers(route=[teacher, teacher]), digits,
                                SHORT.but(epochs=4), 2, checkpoint, after_lesson=None, after_epoch=after)  # fmt: skip
        except Stop:
            pass
        return result, weights(student), weights(knowledge)

    whole, student, knowledge = run()
    path = tmp_path / "run.safetensors"
    run(Checkpoint(path, every=0, run="x"), stop=stop_after)
    resumed, student_again, knowledge_again = run(Checkpoint(path, every=0, run="x"))
    assert same(student, student_again) and same(knowledge, knowledge_again)
    assert whole.curve == resumed.curve and whole.lessons == resumed.lessons and whole.teacher_images == resumed.teacher_images


def test_a_killed_run_ends_in_the_same_bits(digits, tmp_path):
    script = textwrap.dedent("""
        import sys, pathlib, torch
        torch.set_num_threads(1)
        import kd
        from kd.distill import Checkpoint
        data = kd.load_data("digits", cache=None).few(10, 0)
        torch.manual_seed(0)
        student = kd.build("cnn3x4", 10, 1)
        checkpoint = Checkpoint(pathlib.Path(sys.argv[1]), every=0, run="x")
        def after(result, _):
            print(len(result.curve), flush=True)
        kd.train(student, data, kd.Recipe(epochs=int(sys.argv[2]), batch_size=8), after_epoch=after, checkpoint=checkpoint)
        torch.save(student.state_dict(), sys.argv[3])
    """)
    path, epochs = tmp_path / "run.safetensors", 40

    def start(out):
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        command = [sys.executable, "-c", script, str(path), str(epochs), str(out)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    process = start(tmp_path / "never.pt")
    for line in process.stdout:
        if int(line) >= 5:
            time.sleep(0.003)  # somewhere within an epoch or a save
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    assert not (tmp_path / "never.pt").exists() and path.exists()
    resumed = start(tmp_path / "resumed.pt")
    first = int(resumed.stdout.readline())
    resumed.stdout.read()
    assert resumed.wait() == 0 and first >= 5  # it did not begin anew
    path.unlink()
    assert start(tmp_path / "whole.pt").communicate() and (tmp_path / "whole.pt").exists()
    assert same(torch.load(tmp_path / "resumed.pt"), torch.load(tmp_path / "whole.pt"))


def test_a_checkpoint_of_another_run_is_refused(digits, tmp_path):
    path = tmp_path / "run.safetensors"
    kd.train(build("cnn3x4", 10, 1), digits, SHORT, checkpoint=Checkpoint(path, every=0, network="cnn3x4", data="digits"))
    with pytest.raises(Problem, match="of network 'cnn3x4', not 'cnn3x8'"):
        kd.train(build("cnn3x8", 10, 1), digits, SHORT, checkpoint=Checkpoint(path, every=0, network="cnn3x8", data="digits"))
    with pytest.raises(Problem, match="of data 'digits', not 'cifar10'"):
        kd.train(build("cnn3x4", 10, 1), digits, SHORT, checkpoint=Checkpoint(path, every=0, network="cnn3x4", data="cifar10"))
