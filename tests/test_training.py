"""Training: modes, gradients and schedules of lessons, networks that will not do, runs side by side."""

import math

import pytest
import tiny
import torch
import torch.nn.functional as F

from kd.errors import ConfigError
from kd.methods import Fixed, Method, Teachers
from kd.methods.kd import KD
from kd.methods.rco import RCO
from kd.methods.srm import SRM
from kd.models import Tapped, build, evaluate
from kd.recipe import Recipe
from kd.training import Run, distill, steps, train


class Watching(KD):
    """KD that notes, at every step, what `look` gives for the student's and the teacher's outputs and the batch."""

    def __init__(self, look):
        super().__init__()
        self.look, self.seen = look, []

    def loss(self, student, teacher, batch):
        self.seen.append(self.look(student, teacher, batch))
        return super().loss(student, teacher, batch)


def test_teacher_evaluates_and_student_trains_at_every_step(data, networks):
    teacher, student = networks
    teacher.train()  # as a user may well hand it over
    method = Watching(lambda mine, theirs, batch: (student.training, teacher.training, theirs.logits.requires_grad))
    before = tiny.snapshot(teacher)
    distill(student, method, teacher, data, tiny.RECIPE)
    assert len(method.seen) == tiny.RECIPE.epochs * data.steps(tiny.RECIPE.batch_size)
    assert set(method.seen) == {(True, False, False)}
    assert not tiny.changed(teacher, before) and all(p.grad is None for p in teacher.parameters())


def test_loss_of_an_epoch_is_the_mean_over_images(data, networks):
    _, student = networks
    copy = tiny.network()
    # a learning rate so small that the weights stand still; train mode, as the loop has it
    result = train(student, data, tiny.RECIPE.replace(epochs=1, learning_rate=1e-30), seed=5)
    copy.train()
    total = sum(F.cross_entropy(copy(b.images).logits, b.labels, reduction="sum").detach() for b in data.batches(5, 0, tiny.RECIPE.batch_size))
    assert result.last["loss"]["labels"] == pytest.approx(float(total) / len(data.labels["train"]), rel=1e-5)


def test_same_seed_same_bits_and_other_seed_other_bits(data):
    first, again, other = (tiny.network() for _ in range(3))
    for network, seed in ((first, 0), (again, 0), (other, 1)):
        train(network, data, tiny.RECIPE, seed)
    assert not tiny.changed(first, tiny.snapshot(again)) and tiny.changed(first, tiny.snapshot(other))


def test_methods_of_one_seed_see_the_same_batches(data, networks):
    teacher, student = networks
    watching = [Watching(lambda mine, theirs, batch: batch.images.clone()) for _ in range(2)]
    distill(student, watching[0], teacher, data, tiny.RECIPE, seed=3)
    distill(tiny.network(), SRM(warm_up=0.5) + watching[1], teacher, data, tiny.RECIPE, seed=3)
    one, other = (method.seen for method in watching)
    assert len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_training_helps(data):
    student = tiny.network()
    before = evaluate(student, data)
    result = train(student, data, tiny.RECIPE.replace(epochs=12))
    assert result.last["test"] > before + 30
    assert result.curve[-1]["loss"]["labels"] < 0.7 * result.curve[0]["loss"]["labels"]


def test_a_loss_that_diverges_is_named(data, networks):
    _, student = networks
    with pytest.raises(ConfigError, match=r"not finite .* lower recipe.learning_rate"):
        train(student, data, tiny.RECIPE.replace(learning_rate=1e30))


def test_bf16_trains_and_losses_stay_fp32(data, networks):
    class Types(KD):
        def loss(self, student, teacher, batch):
            assert student.logits.dtype == teacher.logits.dtype == torch.float32
            assert all(f.dtype == torch.float32 for f in (*student.features, *teacher.features))
            return super().loss(student, teacher, batch)

    teacher, student = networks
    result = distill(student, Types(), teacher, data, tiny.RECIPE.replace(precision="bf16"))
    assert math.isfinite(result.last["loss"]["logits"])
    assert all(p.dtype == torch.float32 for p in student.parameters())


def test_ones_own_network_is_distilled(data, networks):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = torch.nn.Conv2d(1, 6, 3)
            self.linear = torch.nn.Linear(6, 3)

        def forward(self, images):
            return self.linear(self.convolution(images).relu().mean((2, 3)))

    teacher, _ = networks
    student = Tapped(Own(), ["convolution"])
    result = distill(student, KD(), teacher, data, tiny.RECIPE)
    assert len(result.curve) == tiny.RECIPE.epochs


def rates_of(method, teachers, student, data, recipe, monkeypatch):
    found, original = [], Recipe.learning_rate_at

    def learning_rate_at(self, progress):
        found.append(original(self, progress))
        return found[-1]

    monkeypatch.setattr(Recipe, "learning_rate_at", learning_rate_at)
    distill(student, method, teachers, data, recipe)
    return found


def test_lessons_restart_the_schedule_or_continue_it(data, networks, monkeypatch):
    teacher, _ = networks
    teachers, recipe = Teachers(route=[teacher, teacher]), tiny.RECIPE.replace(schedule="cosine")
    steps = data.steps(recipe.batch_size)

    def rates(restart):
        return rates_of(Method(tiny.TwoLessons(restart), KD()), teachers, tiny.network(), data, recipe, monkeypatch)

    once = [0.025 * (1 + math.cos(math.pi * s / (4 * steps))) for s in range(4 * steps)]
    again = [0.025 * (1 + math.cos(math.pi * s / (2 * steps))) for s in range(2 * steps)] * 2
    assert rates(False) == pytest.approx(once)
    assert rates(True) == pytest.approx(again)


def test_lessons_without_restart_equal_one_long_lesson(data, networks):
    # the same teacher twice, no restart: momentum, schedule and batches go on as if there were one lesson
    teacher, _ = networks
    found = []
    for curriculum in (tiny.TwoLessons(False), Fixed()):
        student = tiny.network()
        distill(student, Method(curriculum, KD()), Teachers(route=[teacher, teacher]), data, tiny.RECIPE)
        found.append(student)
    assert not tiny.changed(found[0], tiny.snapshot(found[1]))


def test_a_list_of_networks_is_a_route(data, networks):
    teacher, student = networks
    assert Teachers.of([student, teacher])["route"] == [student, teacher]
    early, late = tiny.network(), tiny.network()
    distill(early, KD(), [student, teacher], data, tiny.RECIPE)
    distill(late, KD(), teacher, data, tiny.RECIPE)
    assert not tiny.changed(early, tiny.snapshot(late))  # the converged one is the last


def test_what_a_curriculum_asks_of_its_teachers_is_not_counted(data, networks):
    teacher, student = networks
    result = distill(student, RCO(anchors=2) * KD(), [tiny.network("cnn6x8", 1), teacher], data, tiny.RECIPE)
    assert result.lessons[0].info["divergence"] and result.teacher_images == tiny.RECIPE.epochs * len(data.labels["train"])


def test_a_run_that_breaks_off_no_longer_watches_its_teacher(data, networks):
    teacher, student = networks

    def stop(result, network):
        raise tiny.Stop

    with pytest.raises(tiny.Stop):
        distill(student, KD(), teacher, data, tiny.RECIPE, after_epoch=stop)
    assert not teacher._forward_pre_hooks


def test_a_network_that_has_taught_is_frozen(data, networks):
    teacher, student = networks
    distill(student, KD(), teacher, data, tiny.RECIPE.replace(epochs=1))
    with pytest.raises(ConfigError, match=r"has taught is frozen, call network.requires_grad_\(True\)"):
        train(teacher, data, tiny.RECIPE)
    train(teacher.requires_grad_(True), data, tiny.RECIPE.replace(epochs=1))


def test_a_last_batch_of_one_image_is_named(data):
    layers = torch.nn.Conv2d(1, 4, data.image_shape[1]), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(4, 3)
    student, count = Tapped(torch.nn.Sequential(*layers), ["1"]), len(data.labels["train"])
    with pytest.raises(ConfigError, match=r"single image.*recipe\.batch_size"):
        train(student, data, tiny.RECIPE.replace(batch_size=count - 1))
    train(student, data, tiny.RECIPE.replace(batch_size=count - 2, epochs=1))


def test_logits_must_be_as_many_as_classes(data, networks):
    teacher, _ = networks
    with pytest.raises(ConfigError, match="the student gives 2 logits, and the data have 3 classes"):
        train(build("cnn3x4", 2, 1), data, tiny.RECIPE)
    with pytest.raises(ConfigError, match="3 classes and the student 11"):
        distill(build("cnn3x4", 11, 1), KD(), teacher, data, tiny.RECIPE)


def test_plain_logits_are_not_enough(data, networks):
    _, student = networks
    plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    for refuse in (
        lambda: train(plain, data, tiny.RECIPE),
        lambda: distill(student, KD(), plain, data, tiny.RECIPE),
        lambda: evaluate(plain, data),
    ):
        with pytest.raises(ConfigError, match=r"Sequential gives Tensor, .* wrap it: kd\.Tapped"):
            refuse()


def test_steps_pause_before_every_batch(data, networks):
    teacher, student = networks
    run = Run(student, Method.of(KD()), Teachers.of(teacher), data, tiny.RECIPE)
    count = data.steps(tiny.RECIPE.batch_size)
    assert list(steps(run)) == [(epoch, batch) for epoch in range(tiny.RECIPE.epochs) for batch in range(count)]
    assert run.result.last["epoch"] == tiny.RECIPE.epochs and run.result.seconds > 0
