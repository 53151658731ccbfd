"""Side by side or alone: the same bits, one pass of the teacher, and nobody's failure is another's."""

import copy

import pytest
import tiny
import torch
from torch import nn

from kd.checkpoints import Checkpoint
from kd.errors import ConfigError
from kd.loop import Run
from kd.methods import Fixed, Method, Teachers, make
from kd.methods.kd import KD
from kd.models import Output
from kd.side_by_side import Shared, Track, side_by_side
from kd.training import PREPARATION, steps

METHODS = {
    "labels": (["labels"],),
    "kd": (["kd"],),
    "fitnet": (["fitnet"],),
    "at": (["at"],),
    "ft": (["ft"],),
    "kr": (["kr"],),
    "srm": (["srm", "kd"], "fixed", {"srm": {"drift": True, "selection": True}}),
    "iekd": (["iekd"],),
    "dml": (["dml"],),
    "iedml": (["iedml"],),
    "hints first": (["fitnet"], "fixed", {"fitnet": {"stage": "initial"}}),
    "route": (["kd"], "rco", {"rco": {"anchors": 2}}),
    "route of factors": (["ft"], "rco", {"rco": {"anchors": 2}}),
    "greedy": (["kd"], "rco", {"rco": {"strategy": "greedy", "lessons": 2}}),
    "widths": (["kd", "at"], "pwkd", {}),
    "together": (["kd"], "pwkd", {"pwkd": {"order": "together"}}),
}


class Saved(list):
    """Networks that come as copies, as from the files of routes and supernets: a run's own, which count for it alone."""

    def __getitem__(self, index):
        return copy.deepcopy(super().__getitem__(index))


@pytest.fixture(scope="module")
def teachers():
    return Teachers(Saved([tiny.teacher(5), tiny.teacher(6)]), Saved([tiny.teacher(7), tiny.teacher(8)]))


class WithDropout(nn.Module):
    """A student that draws from torch's generator in every step."""

    def __init__(self):
        super().__init__()
        self.network, self.dropout = tiny.network(), nn.Dropout(0.3)

    def forward(self, images):
        return Output(self.network(self.dropout(images)).logits, self.network(images).features)


def begun(name, teachers, data, recipe, ask=None, **options):
    torch.manual_seed(3)
    student = WithDropout() if name == "kd" else tiny.network()
    return Run(student, make(*METHODS[name]), teachers, data, recipe, 3, ask=ask, **options)


def outcome(run):
    weights = {f"{part} {name}": value for part, state in run.weights().items() for name, value in state.items()}
    return weights, run.result.curve, [vars(lesson) for lesson in run.result.lessons], run.result.measured, run.result.teacher_images


def check_same(one, other):
    assert one[1:] == other[1:] and one[0].keys() == other[0].keys()
    for name, value in one[0].items():
        assert torch.equal(value, other[0][name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_method_learns_what_it_learns_alone(teachers, precision):
    recipe, data = tiny.RECIPE.replace(precision=precision), tiny.data()
    shared = Shared(data)
    together = {name: begun(name, teachers, shared, recipe, shared.ask) for name in METHODS}
    assert all(failure is None for _, failure in side_by_side([Track(run) for run in together.values()]))
    for name, run in together.items():
        alone = begun(name, teachers, data, recipe)
        list(steps(alone))
        check_same(outcome(alone), outcome(run))


def total(shared, what):
    return sum(passes[what] for passes in shared.passes.values())


def test_a_teacher_is_asked_once_for_all(teachers):
    shared, names = Shared(tiny.data()), ["kd", "at", "fitnet", "kr"]
    runs = [begun(name, teachers, shared, tiny.RECIPE, shared.ask) for name in names]
    assert not [failure for _, failure in side_by_side(map(Track, runs)) if failure]
    once = tiny.RECIPE.epochs * shared.steps(tiny.RECIPE.batch_size)
    assert total(shared, "asked") == once * len(names) and total(shared, "made") == once


def test_other_lessons_share_what_coincides(teachers):
    shared = Shared(tiny.data())
    runs = [begun(name, teachers, shared, tiny.RECIPE, shared.ask) for name in ("kd", "route", "labels")]
    assert not [failure for _, failure in side_by_side(map(Track, runs)) if failure]
    once = tiny.RECIPE.epochs * shared.steps(tiny.RECIPE.batch_size)
    assert total(shared, "asked") == 2 * once and once < total(shared, "made") <= 2 * once


def test_preparing_phases_come_first_so_that_lessons_begin_together(teachers):
    shared = Shared(tiny.data())
    tracks = [Track(begun(name, teachers, shared, tiny.RECIPE, shared.ask)) for name in ("kd", "srm", "ft")]
    seen = []
    for track in tracks:
        true = track.advance
        track.advance = lambda true=true, track=track: (true(), seen.append(track.place))[0]
    list(side_by_side(tracks))
    first = next(n for n, place in enumerate(seen) if place == (True, 0, 1))
    assert not [place for place in seen[first:] if not place[0] and place[1] >= PREPARATION]


def test_one_that_fails_takes_nobody_with_it(teachers):
    shared = Shared(tiny.data())
    bad = Run(tiny.network(), Method.of(KD()), teachers, shared, tiny.RECIPE.replace(learning_rate=1e30), 3, ask=shared.ask)
    good = begun("at", teachers, shared, tiny.RECIPE, shared.ask)
    ended = {id(track.run): failure for track, failure in side_by_side([Track(bad), Track(good)])}
    assert isinstance(ended[id(bad)], ConfigError) and "not finite" in str(ended[id(bad)]) and ended[id(good)] is None
    alone = begun("at", teachers, tiny.data(), tiny.RECIPE)
    list(steps(alone))
    check_same(outcome(alone), outcome(good))


def test_a_group_that_was_killed_goes_on_to_the_same_bits(teachers, tmp_path):
    """Every run was saved at another epoch; they meet again where the one furthest behind catches up."""
    names, data = ["kd", "srm", "route of factors", "widths"], tiny.data()
    for number, name in enumerate(names):

        class Stop(Exception):
            pass

        def stop(result, student, number=number, Stop=Stop):
            if len(result.curve) == 1 + number:
                raise Stop

        checkpoint = Checkpoint(tmp_path / f"{name}.safetensors", every=0, run=name)
        with pytest.raises(Stop):
            list(steps(begun(name, teachers, data, tiny.RECIPE, checkpoint=checkpoint, after_epoch=stop)))
    shared = Shared(data)
    runs = {n: begun(n, teachers, shared, tiny.RECIPE, shared.ask, checkpoint=Checkpoint(tmp_path / f"{n}.safetensors", run=n)) for n in names}
    assert not [failure for _, failure in side_by_side([Track(run) for run in runs.values()]) if failure]
    for name, run in runs.items():
        alone = begun(name, teachers, data, tiny.RECIPE)
        list(steps(alone))
        check_same(outcome(alone), outcome(run))


def test_who_is_out_of_step_gets_batches_of_its_own():
    data = tiny.data()
    shared, whole = Shared(data), list(data.batches(1, 0, 16))
    first, late = shared.batches(1, 0, 16), shared.batches(1, 0, 16)
    assert next(first) is next(late) and torch.equal(next(first).images, whole[1].images) and next(first) is not next(late)
    for batch in whole[2:]:
        assert torch.equal(next(late).images, batch.images)
    for again in (shared.batches(1, 0, 16), shared.batches(1, 0, 16)):
        for one, other in zip(again, whole, strict=True):
            assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_no_batch_outlives_its_epoch():
    shared = Shared(tiny.data())
    for epoch in range(5):
        for one, other in zip(shared.batches(1, epoch, 16), shared.batches(1, epoch, 16), strict=True):
            assert one is other
    assert len(shared.kept) == 1 and not shared.iterators


def test_a_fixed_lesson_by_another_index_is_asked_for_itself(teachers):
    shared = Shared(tiny.data())
    runs = [Run(tiny.network(), Method(Fixed(index=index), KD()), teachers, shared, tiny.RECIPE, 3, ask=shared.ask) for index in (0, 1)]
    list(side_by_side(map(Track, runs)))
    alone = [Run(tiny.network(), Method(Fixed(index=index), KD()), teachers, tiny.data(), tiny.RECIPE, 3) for index in (0, 1)]
    for one, other in zip(alone, runs, strict=True):
        list(steps(one))
        check_same(outcome(one), outcome(other))
    assert total(shared, "made") == total(shared, "asked")
