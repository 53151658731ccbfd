"""RCO: the divergence and the search against independent derivations; what the lessons train; resuming to the bit."""

import dataclasses

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.errors import ConfigError
from kd.methods import Teachers
from kd.methods.hints import FitNet
from kd.methods.kd import KD
from kd.methods.rco import RCO, divergence, equal_intervals, greedy_anchor
from kd.models import build
from kd.study.tables import load_table
from kd.training import distill, train


@pytest.fixture(scope="module")
def data():
    return tiny.data(36, 12, 12)


@pytest.fixture(scope="module")
def route(data):
    states = []
    torch.manual_seed(0)
    network = build("cnn3x4", 3, 1)

    def keep(result, network):
        copy = build("cnn3x4", 3, 1)
        copy.load_state_dict(network.state_dict())
        states.append(copy)

    train(network, data, tiny.LONGER, after_epoch=keep)
    return tiny.Steps(states, [1, 2, 3, 4, 5, 6])


def student():
    return tiny.network("cnn3x2", 1)


def test_divergence_against_numpy():
    rng = np.random.default_rng(0)
    student_logits, teacher_logits = rng.normal(size=(2, 7, 5))

    s, t = tiny.softmax(student_logits), tiny.softmax(teacher_logits)
    logs = [torch.log_softmax(torch.tensor(x), 1) for x in (student_logits, teacher_logits)]
    assert abs(float(divergence(*logs)) - (t * np.log(t / s)).sum(1).mean()) < 1e-9
    assert abs(float(divergence(*logs, "student to teacher")) - (s * np.log(s / t)).sum(1).mean()) < 1e-9
    assert float(divergence(logs[0], logs[0])) == 0


def test_the_measured_divergence_is_that_of_the_held_out_images(route, data):
    mine, temperature = student(), 2.0
    H, seen = RCO(temperature=temperature).prepare_for(route, data).measured(mine.train(), data)
    value = H(3)
    images = (data.images["validation"].double() / 255 - 0.3) / 0.2
    with torch.no_grad():
        s = np.array(mine.eval()(images.float()).logits.double()) / temperature
        t = np.array(route[3].eval()(images.float()).logits.double()) / temperature
    s, t = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (s, t))
    assert abs(value - (np.exp(t) * (t - s)).sum(1).mean()) < 1e-5 and seen == {3: value}


def test_looking_changes_no_mode_and_no_weight(route, data):
    mine = student().train()
    before = {k: v.clone() for k, v in mine.state_dict().items()}
    RCO(images=5).prepare_for(route, data).measured(mine, data)[0](0)
    assert mine.training and all(torch.equal(before[k], v) for k, v in mine.state_dict().items())
    assert RCO(images=5).prepare_for(route, data).log_probabilities(mine, data).shape == (5, 3)


def test_few_held_out_images_are_drawn_from_all_of_them(data):
    by_class = data.labels["validation"].argsort(stable=True)
    images, labels = ({**part, "validation": part["validation"][by_class]} for part in (data.images, data.labels))
    ordered = dataclasses.replace(data, images=images, labels=labels)
    few, every = (RCO(images=count).log_probabilities(student(), ordered) for count in (4, 12))
    drawn = torch.cdist(few, every).argmin(1)
    assert len(set(labels["validation"][drawn].tolist())) > 1


def test_a_curriculum_used_again_forgets_other_data(route, data):
    used, other = RCO(anchors=2), tiny.data(36, 12, 12)
    other.images = {split: 255 - part for split, part in other.images.items()}
    tiny.lessons(used, 6, route, data)
    again, fresh = tiny.lessons(used, 6, route, other), tiny.lessons(RCO(anchors=2), 6, route, other)
    assert again == fresh and "divergence" in fresh[0].info


def algorithm_2(H, i, N, delta):
    """The paper's Algorithm 2, line by line, states numbered from 1."""
    j = i + 1
    while j < N:
        r = (H[j - 1] - H[i - 1]) / H[i - 1]
        if r > delta:
            return j - 1
        j = j + 1
    return N


@given(st.lists(st.floats(0.01, 5), min_size=2, max_size=12), st.data(), st.floats(0.05, 5))
@settings(max_examples=300, deadline=None)
def test_greedy_search_is_algorithm_2(values, draw, delta):
    i = draw.draw(st.integers(1, len(values) - 1))
    ratios = [(h - values[i - 1]) / values[i - 1] for h in values]
    if any(abs(r - delta) < 1e-9 for r in ratios):
        return
    assert greedy_anchor(lambda j: values[j], i - 1, len(values), delta) + 1 == algorithm_2(values, i, len(values), delta)


def test_greedy_search_by_hand():
    H = [1.0, 1.5, 1.7, 1.9, 1.0, 9.0].__getitem__
    assert greedy_anchor(H, 0, 6, 0.8) == 2  # 1.9 is 90 % above 1.0: one back
    assert greedy_anchor(H, 0, 6, 0.4) == 0  # too hard at once, as printed: stays
    assert greedy_anchor(H, 0, 6, 1.0) == 5  # the last state, though 9.0, is never tested
    assert greedy_anchor([0.0, 1e-9, 1.0].__getitem__, 0, 3, 0.8) == 0  # a student that equals its anchor


def test_equal_intervals_are_the_papers():
    every_ten = list(range(10, 241, 10))

    def epochs(count):
        return [every_ten[i] for i in equal_intervals(every_ten, count)]

    assert epochs(24) == every_ten  # M_gap = 10
    assert epochs(2) == [120, 240] and epochs(3) == [80, 160, 240] and epochs(4) == [60, 120, 180, 240]  # EEI-2, -3, -4
    assert equal_intervals([4, 8, 10], 2) == [0, 2]  # 4 is nearer to 5 than 8 is
    with pytest.raises(ConfigError, match="different states"):
        equal_intervals([1, 2, 10], 3)


def test_lessons_of_each_strategy(route, data):
    one = tiny.lessons(RCO(anchors=3), 20, route, data)
    assert [(x.indices, x.epochs, x.restart) for x in one] == [((1,), 7, False), ((3,), 6, False), ((5,), 7, False)]
    assert [x.info["teacher_epoch"] for x in one] == [2, 4, 6]
    several = tiny.lessons(RCO("multi-stage", anchors=2), 20, route, data)
    assert [(x.indices, x.epochs, x.restart) for x in several] == [((2,), 10, True), ((5,), 10, True)]
    assert [x.epochs for x in tiny.lessons(RCO(), 4, route, data)] == [1] * 4  # no more anchors than epochs
    assert len(tiny.lessons(RCO(), 100, route, data)) == 6  # nor than states


@pytest.mark.parametrize("strategy", ["one-stage", "multi-stage"])
def test_anchors_left_open_are_as_many_as_fit(strategy, route, data):
    uneven = tiny.Steps(route[:4], [3, 6, 9, 10])  # saved every 3 of 10 epochs: four equal intervals meet one state twice
    assert [x.indices for x in tiny.lessons(RCO(strategy), 20, uneven, data)] == [(0,), (1,), (3,)]
    with pytest.raises(ConfigError, match=r"rco\.anchors: 4 equal intervals"):
        tiny.lessons(RCO(strategy, anchors=4), 20, uneven, data)


def search_over(table, monkeypatch, route, data, curriculum, epochs):
    """Lessons of a greedy curriculum whose H after a lesson on state i is table[i]."""

    def measured(self, network, data):
        seen = {}

        def H(j):
            seen[j] = table.get(current(), [9] * 6)[j]
            return seen[j]

        return H, seen

    done, network = [], student()

    def current():
        return done[-1].indices[0] if done else -1

    monkeypatch.setattr(RCO, "measured", measured)
    while (lesson := curriculum.next(done, epochs, Teachers(route=route), network, data)) is not None:
        done.append(lesson)
    return done


def test_greedy_lessons(route, data, monkeypatch):
    table = {-1: [1, 1.2, 1.5, 3, 3, 3], 0: [1, 1.5, 1.7, 9, 9, 9], 2: [9, 9, 1, 5, 5, 5], 3: [9, 9, 9, 1, 1, 9]}
    done = search_over(table, monkeypatch, route, data, RCO("greedy", lessons=4), 20)
    # from 0 to 2; from 2 as printed nowhere, so to 3; from 3 to the end
    assert [x.indices for x in done] == [(0,), (2,), (3,), (5,)] and [x.epochs for x in done] == [5] * 4
    assert all(x.restart for x in done) and [x.info.get("next_by_search") for x in done] == [3, 4, 6, None]
    assert done[1].info["divergence"] == table[2] and done[0].info["divergence"] == table[0]

    done = search_over(table, monkeypatch, route, data, RCO("greedy", lessons=3), 20)  # the budget ends it
    assert [x.indices for x in done] == [(0,), (2,), (5,)] and [x.epochs for x in done] == [6, 6, 8]
    assert done[1].info["next_by_search"] == 4
    done = search_over(table, monkeypatch, route, data, RCO("greedy", lessons=2, within_budget=False), 20)
    assert [x.indices for x in done] == [(0,), (2,), (3,), (5,)] and [x.epochs for x in done] == [10] * 4

    done = search_over(table, monkeypatch, route, data, RCO("greedy", first="search", lessons=9), 20)
    assert done[0].indices == (2,) and done[0].info["divergence_untrained"][:3] == [1, 1.2, 1.5]
    done = search_over(table, monkeypatch, route, data, RCO("greedy", first=0.5, lessons=9), 20)
    assert done[0].indices == (2,)
    easy = {0: [1] * 6}
    done = search_over(easy, monkeypatch, route, data, RCO("greedy", lessons=4), 20)  # an early end gives its epochs to the last
    assert [(x.indices, x.epochs) for x in done] == [((0,), 5), ((5,), 15)]
    untraced = search_over(table, monkeypatch, route, data, RCO("greedy", lessons=3, trace=False), 20)
    assert untraced[1].info["divergence"] == [None, None, 1, 5, None, None]
    assert "divergence" not in untraced[2].info


def test_distil_along_the_route(route, data):
    """The teachers stay as they are and get no gradient; the trace is there; the student learns."""
    before = [{k: v.clone() for k, v in n.state_dict().items()} for n in route]
    mine = student()
    result = distill(mine, RCO(anchors=3) * KD(), Teachers(route=route), data, tiny.LONGER.replace(epochs=12))
    for network, state in zip(route, before, strict=True):
        assert all(torch.equal(state[k], v) for k, v in network.state_dict().items())
        assert all(p.grad is None for p in network.parameters())
    assert [entry["lesson"] for entry in result.curve] == [0] * 4 + [1] * 4 + [2] * 4
    assert all(len(lesson.info["divergence"]) == 6 for lesson in result.lessons)
    assert result.lessons[-1].info["divergence"][-1] < result.lessons[0].info["divergence"][-1]  # nearer to the whole teacher
    untrained = RCO().prepare_for(route, data).measured(student(), data)[0]
    for lesson in result.lessons:
        anchor = lesson.indices[0]
        assert lesson.info["divergence"][anchor] < 0.8 * untrained(anchor)


def test_one_stage_goes_on_where_multi_stage_starts_anew(route, data):
    """With the converged state as every anchor, one-stage is plain KD to the bit, and multi-stage is KD with cycles."""
    same = tiny.Steps([route[-1]] * 3, [1, 2, 3])
    recipe = tiny.LONGER.replace(epochs=6, schedule="step", milestones=(0.5,))

    def weights(method, recipe, teachers=same):
        mine = student()
        distill(mine, method, Teachers(route=teachers), data, recipe, seed=4)
        return torch.cat([p.flatten() for p in mine.parameters()])

    plain = weights(KD(), recipe)
    assert torch.equal(weights(RCO(anchors=3) * KD(), recipe), plain)
    assert not torch.equal(weights(RCO("multi-stage", anchors=3) * KD(), recipe), plain)


def test_which_anchor_teaches_which_epoch(route, data):
    calls = []
    hooks = [n.register_forward_pre_hook(lambda m, x, i=i: calls.append((i, m.training))) for i, n in enumerate(route)]
    distill(student(), RCO(anchors=2, trace=False) * KD(), Teachers(route=route), data, tiny.LONGER.replace(epochs=4))
    for hook in hooks:
        hook.remove()
    steps = data.steps(tiny.LONGER.batch_size)
    taught = [i for i, _ in calls]
    assert taught == [2] * (2 * steps + 1) + [5] * (2 * steps + 1)  # one more to learn the shapes
    assert not any(training for _, training in calls)


@pytest.mark.parametrize(
    "method",
    [
        lambda: RCO(anchors=3) * KD(),
        lambda: RCO("multi-stage", anchors=3) * (KD() + FitNet()),
        lambda: RCO("greedy", lessons=3) * FitNet(),
    ],
)
def test_stopped_and_resumed_is_uninterrupted(method, route, data, tmp_path):
    # 2 and 4: in the middle of a lesson, and in its last epoch
    tiny.check_resume(method(), Teachers(route=route), tmp_path, (2, 3, 4), tiny.LONGER, student=student, of=lambda: data)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strategy": "gready"}, r"did you mean 'greedy'\?"),
        ({"delta": "0.8"}, r"rco\.delta: '0\.8' must be a number"),
        ({"anchors": 2.5}, r"rco\.anchors: 2\.5 must be a whole number"),
        ({"lessons": None}, r"rco\.lessons: None must be a whole number"),
        ({"first": -1}, r"rco\.first: -1 must be the number of a state from 0, a share between 0 and 1, or 'search'"),
        ({"first": 1.0}, r"rco\.first: 1\.0 must be the number of a state"),
        ({"first": True}, r"rco\.first: True must be the number of a state"),
        ({"first": "serch"}, r"rco\.first: 'serch' .* \(did you mean 'search'\?\)"),
    ],
)
def test_wrong_parameters(options, words):
    with pytest.raises(ConfigError, match=words):
        RCO(**options)


def test_what_does_not_fit_the_route(route, data):
    for curriculum, epochs, words in (
        (RCO(anchors=7), 20, "the route has 6 states"),
        (RCO(anchors=5), 4, "4 epochs do not suffice for 5 lessons"),
        (RCO("greedy", lessons=5), 4, "4 epochs do not make 5 lessons"),
        (RCO("greedy", first=6), 9, "state 6, but the route's 6 states"),
    ):
        with pytest.raises(ConfigError, match=words):
            tiny.lessons(curriculum, epochs, route, data)
    with pytest.raises(ConfigError, match="a single one"):
        distill(student(), RCO() * KD(), route[-1], data, tiny.LONGER)
    nothing = tiny.data(36, 0, 12)
    with pytest.raises(ConfigError, match="held-out"):
        tiny.lessons(RCO("greedy"), 9, route, nothing)
    assert all("divergence" not in x.info for x in tiny.lessons(RCO(anchors=2), 9, route, nothing))


def test_a_table_holds_the_papers_rows():
    rows = load_table("rco_table7")["rows"]
    figures = [(row["reported"]["value"], row.get("epochs", 1)) for row in rows if "reported" in row]
    # the paper's rows took 240, 240, 480, 720, 960 and 720 epochs
    assert figures == [(60.79, 1), (65.01, 1), (61.43, 2), (63.34, 3), (65.27, 4), (65.41, 3)]
