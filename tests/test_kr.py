"""KR: codes, recoding and cross-entropy against independent derivations; who gets a gradient; composing; resuming to the bit."""

import math

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from kd.errors import ConfigError
from kd.methods import Fixed, Teachers
from kd.methods.kd import KD
from kd.methods.kr import KR, code, fewer, norm_scales, recoded_cross_entropy, strongest
from kd.methods.pwkd import PWKD
from kd.methods.rco import RCO
from kd.models import Output, Supernet, Tapped
from kd.training import distill

EVERY_WAY = [
    {"aggregation": aggregation, "mapping": mapping, "recoding": recoding}
    for aggregation in ("group", "cells", "none", "gram")
    for mapping in ("learned", "pooled", "sorted")
    for recoding in ("top-k", "threshold", "mask gradient", "none")
    if (aggregation, mapping) != ("gram", "sorted")
]


@pytest.fixture(scope="module")
def data():
    return tiny.data(36, 12, 12)


def network(name="cnn3x4", seed=0):
    built = tiny.network(name, seed)
    for module in built.modules():  # as after training: scales and statistics that say something
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
    return built.eval()


def outputs(student_channels=(4, 8), teacher_channels=(6, 10), sizes=(6, 4), seed=0):
    """Outputs of a student and a teacher with two stages each, float64."""
    made = []
    for place, channels in enumerate((student_channels, teacher_channels)):
        maps = [
            tiny.normal(5, c, s, s, seed=seed + 10 * place + i).relu()
            for i, (c, s) in enumerate(zip(channels, sizes, strict=True))
        ]
        made.append(Output(tiny.normal(5, 3, seed=seed + place), tuple(maps)))
    return made


def kept_by_hand(row, keep, recoding, temperature):
    order = sorted(range(len(row)), key=lambda i: -row[i])
    if recoding in ("none", "l1"):
        return list(range(len(row)))
    if recoding == "threshold":
        p, total, chosen = tiny.softmax(row / temperature), 0.0, []
        for i in order:
            chosen.append(i)
            total += p[i]
            if total >= keep and len(chosen) >= 2:
                break
        return chosen
    return order[: max(2, math.ceil(keep * len(row)))]


@pytest.mark.parametrize("recoding", ["top-k", "threshold", "mask gradient", "l1", "none"])
@pytest.mark.parametrize(("temperature", "keep"), [(1.0, 0.5), (0.5, 0.3), (4.0, 0.8), (2.0, 1.0)])
def test_cross_entropy_against_numpy(recoding, temperature, keep):
    z_s, z_t = 2 * tiny.normal(7, 9), 2 * tiny.normal(7, 9, seed=1)
    losses = []
    for mine, theirs in zip(z_s.numpy(), z_t.numpy(), strict=True):
        kept = kept_by_hand(theirs, keep, recoding, temperature)
        if recoding == "mask gradient":
            kept = list(range(9))
        q, p = tiny.softmax(theirs[kept] / temperature), tiny.softmax(mine[kept] / temperature)
        losses.append(-(q * np.log(p)).sum())
    expected = temperature**2 * np.mean(losses)
    if recoding == "l1":
        expected += 0.03 * np.abs(z_s.numpy()).mean()
    found = recoded_cross_entropy(z_s, z_t, temperature, keep, recoding, penalty=0.03)
    assert abs(found.item() - expected) < 1e-9


@pytest.mark.parametrize("recoding", ["top-k", "threshold", "mask gradient"])
def test_only_kept_coordinates_pass_gradient(recoding):
    z_s, z_t = tiny.normal(7, 9).requires_grad_(), (3 * tiny.normal(7, 9, seed=1)).requires_grad_()
    recoded_cross_entropy(z_s, z_t, 2.0, 0.4, recoding).backward()
    assert z_t.grad is None
    for mine, theirs, gradient in zip(z_s.detach().numpy(), z_t.detach().numpy(), z_s.grad.numpy(), strict=True):
        kept = kept_by_hand(theirs, 0.4, recoding, 2.0)
        assert 2 <= len(kept) < 9
        support = list(range(9)) if recoding == "mask gradient" else kept
        expected = np.zeros(9)
        expected[support] = 2.0 * (tiny.softmax(mine[support] / 2) - tiny.softmax(theirs[support] / 2)) / 7  # T (p - q) / N
        dropped = [i for i in range(9) if i not in kept]
        expected[dropped] = 0.0
        np.testing.assert_allclose(gradient, expected, atol=1e-12)
        assert not gradient[dropped].any() and gradient[kept].all()


@pytest.mark.parametrize("recoding", ["top-k", "threshold", "mask gradient", "none"])
def test_least_value_is_the_entropy_of_the_recoded_teacher(recoding):
    z_t = 2 * tiny.normal(6, 8)
    least = recoded_cross_entropy(z_t, z_t, 1.5, 0.5, recoding).item()
    entropies = []
    for row in z_t.numpy():
        kept = list(range(8)) if recoding == "mask gradient" else kept_by_hand(row, 0.5, recoding, 1.5)
        q = tiny.softmax(row[kept] / 1.5)
        entropies.append(-(q * np.log(q)).sum())
    assert abs(least - 1.5**2 * np.mean(entropies)) < 1e-9
    for seed in range(5):
        assert recoded_cross_entropy(z_t + 0.3 * tiny.normal(6, 8, seed=seed + 5), z_t, 1.5, 0.5, recoding).item() > least


def test_strongest_counts_and_edges():
    z = tiny.normal(11, 7)
    assert strongest(z, 0.5).sum(1).tolist() == [4] * 11  # ceil(3.5)
    assert strongest(z, 1e-9).sum(1).tolist() == [2] * 11  # one alone would pass no gradient
    assert strongest(z, 1e-9, "threshold").sum(1).tolist() == [2] * 11
    assert strongest(z[:, :1], 0.5).all()
    for recoding in ("top-k", "threshold"):
        assert strongest(100 * z, 1.0, recoding).all()  # keep = 1 drops nothing, however small
    ties = torch.zeros(2, 6)
    assert strongest(ties, 0.5).sum(1).tolist() == [3, 3]
    assert strongest(ties, 0.5, "threshold").sum(1).tolist() == [3, 3]
    assert torch.isfinite(recoded_cross_entropy(torch.full((2, 6), 900.0), 700 * ties + 700.0))


def test_codes_against_numpy():
    f = tiny.normal(3, 4, 2, 5)
    x = f.numpy()
    np.testing.assert_allclose(code(f, "group"), x.mean((2, 3)), atol=1e-12)
    positions = [x[n, :, h, w] for n in range(3) for h in range(2) for w in range(5)]
    np.testing.assert_allclose(code(f, "none"), positions, atol=1e-12)
    gram = [[(x[n, i] * x[n, j]).mean() for j in range(4)] for n in range(3) for i in range(4)]
    np.testing.assert_allclose(code(f, "gram"), gram, atol=1e-12)


def test_fewer_averages_neighbours():
    v = tiny.normal(2, 3, 8)
    np.testing.assert_allclose(fewer(v, 4, "pooled"), v.numpy().reshape(2, 3, 4, 2).mean(-1), atol=1e-12)
    falling = -np.sort(-v.numpy(), -1)
    np.testing.assert_allclose(fewer(v, 4, "sorted"), falling.reshape(2, 3, 4, 2).mean(-1), atol=1e-12)
    assert torch.equal(fewer(v, 8, "pooled"), v)
    shuffled = v[..., torch.randperm(8, generator=torch.Generator().manual_seed(0))]
    assert torch.equal(fewer(shuffled, 3, "sorted"), fewer(v, 3, "sorted"))


def test_loss_end_to_end_against_numpy():
    """Learned mapping, two groups, top-k: the whole method from the formula in the file's head."""
    student, teacher = outputs()
    knowledge = KR(weight=2.5, keep=0.4, temperature=0.7).double()
    knowledge.build(None, None, student, teacher)
    knowledge.double()
    total = 0.0
    for regressor, f, g in zip(knowledge.regressors, student.features, teacher.features, strict=True):
        w, b = regressor.weight.detach().numpy()[:, :, 0, 0], regressor.bias.detach().numpy()
        mine, theirs = f.numpy().mean((2, 3)) @ w.T + b, g.numpy().mean((2, 3))
        rows = []
        for m, t in zip(mine, theirs, strict=True):
            kept = kept_by_hand(t, 0.4, "top-k", 0.7)
            rows.append(-(tiny.softmax(t[kept] / 0.7) * np.log(tiny.softmax(m[kept] / 0.7))).sum())
        total += 0.7**2 * np.mean(rows)
    found = knowledge.loss(student, teacher, None)
    assert list(found) == ["representation"]
    assert abs(found["representation"].item() - 2.5 * total) < 1e-9


@pytest.mark.parametrize("way", EVERY_WAY, ids=lambda way: "-".join(way.values()))
def test_every_way_spares_the_teacher_and_is_least_at_the_teacher(way):
    student, teacher = outputs()
    knowledge = KR(**way)
    knowledge.build(None, None, student, teacher)
    knowledge.double()
    for output in (student, teacher):
        for features in output.features:
            features.requires_grad_()
    knowledge.loss(student, teacher, None)["representation"].backward()
    assert all(f.grad is not None and f.grad.abs().sum() > 0 for f in student.features)
    assert all(f.grad is None or not f.grad.any() for f in teacher.features)
    codes = [theirs for _, theirs in knowledge.codes(student, teacher)]
    with torch.no_grad():
        twin = KR(**way)
        twin.build(None, None, teacher, teacher)
        twin.double()
        for regressor in twin.regressors:  # the identity
            regressor.weight.copy_(torch.eye(len(regressor.weight))[:, :, None, None])
            regressor.bias.zero_()
        least = twin.loss(teacher, teacher, None)["representation"].item()
        settings = (1.0, 0.5, way["recoding"])
        assert (
            abs(
                least
                - 3.0
                * sum(
                    recoded_cross_entropy(z, z, *settings).item() for z in (t for _, t in twin.codes(teacher, teacher))
                )
            )
            < 1e-9
        )
    assert all(
        z.shape[1] == (g.shape[1] if way["mapping"] == "learned" else f.shape[1])
        for z, f, g in zip(codes, student.features, teacher.features, strict=True)
    )


def test_maps_of_different_sizes_meet():
    student, _ = outputs(sizes=(6, 4))
    _, teacher = outputs(sizes=(3, 4))
    rows = {"group": 5, "cells": 5 * 2 * 2, "none": 5 * 3 * 3, "gram": 5 * 6}
    for aggregation, count in rows.items():
        knowledge = KR(aggregation=aggregation)
        knowledge.build(None, None, student, teacher)
        knowledge.double()
        (first, _) = knowledge.codes(student, teacher)
        assert first[0].shape == first[1].shape == (count, 6)
        assert torch.isfinite(knowledge.loss(student, teacher, None)["representation"])


def grid_by_hand(maps, height, width):
    """Means of a NumPy array (N, C, H, W) over a grid of equal cells, a row a cell: (N height width, C)."""
    n, c, h, w = maps.shape
    means = maps.reshape(n, c, height, h // height, width, w // width).mean((3, 5))
    return means.transpose(0, 2, 3, 1).reshape(-1, c)


@pytest.mark.parametrize(("cells", "grids"), [(1, (1, 1)), (2, (2, 2)), (3, (3, 2)), (9, (6, 2))], ids=str)
def test_cells_against_numpy(cells, grids):
    """The whole loss, learned mapping and top-k; the teacher's second stage has maps of 2x2, and no finer grid."""
    student, teacher = outputs(sizes=(6, 4))[0], outputs(sizes=(6, 2))[1]
    for feature in teacher.features:  # behind a ReLU several entries are 0, and which of them is kept is nobody's to say
        feature += 1e-3 * torch.rand(feature.shape, generator=torch.Generator().manual_seed(1), dtype=feature.dtype)
    knowledge = KR(aggregation="cells", cells=cells, weight=2.5, keep=0.4, temperature=0.7)
    knowledge.build(None, None, student, teacher)
    knowledge.double()
    total = 0.0
    for regressor, f, g, grid in zip(knowledge.regressors, student.features, teacher.features, grids, strict=True):
        w, b = regressor.weight.detach().numpy()[:, :, 0, 0], regressor.bias.detach().numpy()
        mine, theirs = grid_by_hand(f.numpy(), grid, grid) @ w.T + b, grid_by_hand(g.numpy(), grid, grid)
        losses = []
        for m, t in zip(mine, theirs, strict=True):
            kept = kept_by_hand(t, 0.4, "top-k", 0.7)
            losses.append(-(tiny.softmax(t[kept] / 0.7) * np.log(tiny.softmax(m[kept] / 0.7))).sum())
        assert len(losses) == 5 * grid**2
        total += 0.7**2 * np.mean(losses)
    assert abs(knowledge.loss(student, teacher, None)["representation"].item() - 2.5 * total) < 1e-9


def test_cells_lie_between_the_whole_map_and_every_position():
    student, teacher = outputs(sizes=(6, 4))
    codes = {}
    for aggregation, cells in (("group", 2), ("cells", 1), ("cells", 6), ("none", 2)):
        knowledge = KR(aggregation=aggregation, cells=cells, mapping="pooled")
        knowledge.build(None, None, student, teacher)
        codes[aggregation, cells] = [z for pair in knowledge.codes(student, teacher) for z in pair]
    for ends in ((("group", 2), ("cells", 1)), (("none", 2), ("cells", 6))):
        for a, b in zip(*(codes[end] for end in ends), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_norm_scales_of_every_kind_of_network():
    plain = network("cnn6x4")
    by_hand = [[m.weight.abs() for m in stage if isinstance(m, nn.BatchNorm2d)] for stage in plain.stages]
    for network_ in (plain, Tapped(plain, ["stages.0", "stages.1", "stages.2"]), Supernet(plain, (0.5, 1.0))):
        found = norm_scales(network_)
        assert [len(group) for group in found] == [2, 2, 2]
        assert all(
            torch.equal(a, b)
            for group, hand in zip(found, by_hand, strict=True)
            for a, b in zip(group, hand, strict=True)
        )
    narrow = norm_scales(Supernet(plain, (0.5, 1.0)).select(0))
    assert [len(group[0]) for group in narrow] == [2, 4, 8]
    with pytest.raises(ConfigError, match="no stages"):
        norm_scales(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="stage 0 has no norm"):
        norm_scales(Tapped(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), ["0"]))


@pytest.mark.parametrize("aggregation", ["group", "none"])
def test_weights_against_numpy(aggregation):
    student, teacher = network("cnn3x4"), network("cnn6x8", seed=1)
    knowledge = KR(statistic="weights", aggregation=aggregation, weight=1.0, keep=0.5)
    images = torch.zeros(2, 1, 8, 8)
    mine, theirs = student(images), teacher(images)
    knowledge.build(student, teacher, mine, theirs)
    total = 0.0
    for s, t in zip(student.stages, teacher.stages, strict=True):
        scales = [[m.weight.detach().abs().numpy() for m in stage if isinstance(m, nn.BatchNorm2d)] for stage in (s, t)]
        scales = scales if aggregation == "group" else [part[-1:] for part in scales]
        count = len(scales[0][0])  # 4, 8, 16: the student's is the smaller
        one, two = (np.mean([(-np.sort(-v)).reshape(count, -1).mean(1) for v in part], 0) for part in scales)
        kept = list(range(count // 2))  # sorted: the strongest stand first
        total += -(tiny.softmax(two[kept]) * np.log(tiny.softmax(one[kept]))).sum()
    loss = knowledge.loss(mine, theirs, None)["representation"]
    assert abs(loss.item() - total) < 1e-5  # float32 networks
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    moved = [name for name, p in student.named_parameters() if p.grad is not None and p.grad.any()]
    assert moved == ["stages.0.1.weight", "stages.1.1.weight", "stages.2.1.weight"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"recoding": "topk"}, r"kr\.recoding: 'topk' must be 'top-k', .* \(did you mean 'top-k'\?\)"),
        ({"keep": 0}, r"kr\.keep: 0 must be greater than 0"),
        ({"keep": 1.1}, r"kr\.keep: 1\.1 must be less than or equal to 1"),
        ({"taps": []}, r"kr\.taps: \[\] must be 'last', 'middle', 'all', or a list of stage numbers"),
        ({"statistic": "weights", "aggregation": "gram"}, "gram needs feature maps"),
        ({"statistic": "weights", "aggregation": "cells"}, "cells needs feature maps"),
        ({"cells": 0}, r"kr\.cells: 0 must be greater than 0"),
        ({"statistic": "weights", "mapping": "learned"}, "take sorted"),
        ({"aggregation": "gram", "mapping": "sorted"}, "gram needs it"),
    ],
)
def test_wrong_parameters(options, words):
    with pytest.raises(ConfigError, match=words):
        KR(**options)


def test_taps(data):
    student, teacher = outputs(student_channels=(4, 8), teacher_channels=(6, 10))
    deeper = Output(teacher.logits, (tiny.normal(5, 3, 8, 8), *teacher.features))
    knowledge = KR()
    knowledge.build(None, None, student, deeper)
    assert [r.out_channels for r in knowledge.regressors] == [6, 10]  # as many of the deepest as both have
    chosen = KR(taps=[1])
    chosen.build(None, None, student, teacher)
    assert [(r.in_channels, r.out_channels) for r in chosen.regressors] == [(8, 10)]
    last = KR(taps="last")
    last.build(None, None, student, deeper)
    assert [(r.in_channels, r.out_channels) for r in last.regressors] == [(8, 10)]
    assert last.double().loss(student, deeper, None)["representation"] > 0
    with pytest.raises(ConfigError, match="tap 5"):
        distill(network(), KR(taps=[-1, 5]), network("cnn6x4"), data, tiny.RECIPE)


@pytest.mark.parametrize(("options", "mine", "theirs"), [({}, 4, 1), ({"mapping": "pooled"}, 1, 6)], ids=str)
def test_one_coordinate_is_no_distribution(options, mine, theirs):
    with pytest.raises(ConfigError, match=r"kr\.taps: a stage leaves a single coordinate"):
        KR(**options).build(None, None, *outputs((mine, 8), (theirs, 10)))
    KR().build(None, None, *outputs((1, 8), (6, 10)))  # a learned map leaves as many as the teacher has


@pytest.mark.parametrize(
    "options", [{}, {"aggregation": "none"}, {"aggregation": "cells"}, {"statistic": "weights"}], ids=str
)
def test_a_run_changes_student_and_regressors_only(data, options):
    student, teacher, knowledge = network(), network("cnn6x4", seed=1), KR(**options)
    before, theirs = tiny.snapshot(student), tiny.snapshot(teacher)
    result = distill(student, knowledge, teacher, data, tiny.RECIPE.replace(epochs=1))
    assert not tiny.changed(teacher, theirs)
    assert tiny.changed(student, before) >= {name for name, _ in student.named_parameters()}
    learned = sum(a * b + b for a, b in ((4, 4), (8, 8), (16, 16)))
    assert result.extra_parameters == (0 if options.get("statistic") == "weights" else learned)
    assert set(result.curve[0]["loss"]) == {"representation", "labels"}
    fresh = KR(**options)
    torch.manual_seed(7919)
    images = next(iter(data.chunks("train", 8))).images
    with torch.no_grad():
        fresh.build(student, teacher, student(images), teacher(images))
    for trained, untrained in zip(knowledge.regressors, fresh.regressors, strict=True):
        assert not torch.equal(trained.weight, untrained.weight)


def gap(student, knowledge, teacher, data):
    return sum(knowledge.measure(student, teacher, data)["kr_gap"])


def test_the_gap_is_a_divergence_in_nats_at_any_temperature(data):
    student, teacher, knowledge = network(seed=2), network("cnn6x4", seed=1), KR(mapping="pooled", temperature=4.0)
    images = next(iter(data.chunks("train", 36))).images
    with torch.no_grad():
        mine, theirs = student(images), teacher(images)
    expected = []
    for codes in zip(mine.features, theirs.features, strict=True):
        rows = []
        for s, t in zip(*(f.double().numpy().mean((2, 3)) for f in codes), strict=True):
            kept = kept_by_hand(t, 0.5, "top-k", 4.0)
            p, q = tiny.softmax(s[kept] / 4), tiny.softmax(t[kept] / 4)
            rows.append((q * np.log(q / p)).sum())
        expected.append(np.mean(rows))
    assert knowledge.measure(student, teacher, data)["kr_gap"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"aggregation": "gram"}, {"statistic": "weights"}, {"mapping": "pooled", "keep": 0.25}], ids=str
)
def test_a_run_improves_its_own_objective(data, options):
    student, teacher, knowledge = (
        network(seed=2),
        network("cnn6x8", seed=1),
        KR(weight=40.0, temperature=0.5, **options),
    )
    images = next(iter(data.chunks("train", 8))).images
    with torch.no_grad():
        torch.manual_seed(7919)
        knowledge.build(student, teacher, student(images), teacher(images))
        before = gap(student, knowledge, teacher, data)
    result = distill(student, knowledge, teacher, data, tiny.RECIPE.replace(epochs=10))
    assert 0 <= sum(result.measured["kr_gap"]) < 0.7 * before
    share = [
        max(2, math.ceil(knowledge.keep * c)) / c
        for c in ((8, 16, 32) if knowledge.mapping == "learned" else (4, 8, 16))
    ]
    assert result.measured["kr_kept"] == pytest.approx(share)


def test_composes_with_kd(data):
    both = KR() + KD()
    result = distill(network(), both, network("cnn6x4", seed=1), data, tiny.RECIPE.replace(epochs=1))
    assert set(result.curve[0]["loss"]) == {"representation", "logits", "labels"}
    assert both.label_weight == pytest.approx(0.1)
    assert set(result.measured) == {"kr_gap", "kr_kept"}


@pytest.mark.parametrize("options", [{}, {"statistic": "weights"}], ids=str)
def test_composes_with_curricula(data, options):
    teachers = Teachers(
        route=tiny.Steps([network("cnn6x4", seed=1), network("cnn6x4", seed=2)], (1, 2)),
        supernet=[Supernet(network("cnn6x8", seed=3), (0.5, 1.0)).select(i).eval() for i in range(2)],
    )
    for curriculum in (RCO("one-stage", anchors=2), PWKD()):
        knowledge = KR(**options)
        result = distill(network(), curriculum * (knowledge + KD()), teachers, data, tiny.RECIPE)
        assert len(result.lessons) == 2 and len(result.curve) == 4
        assert [r.out_channels for r in knowledge.regressors] in ([], [4, 8, 16], [8, 16, 32])
    assert bool(len(knowledge.regressors)) == (not options)


def test_weights_follow_the_lessons_teacher(data):
    """The second teacher's features have the first one's shapes, so nothing is rebuilt; its scales must count all the same."""
    route, seen, knowledge = [network("cnn6x4", seed=1), network("cnn6x4", seed=2)], [], KR(statistic="weights")
    distill(
        network(), tiny.TwoLessons() * knowledge, Teachers(route=route), data, tiny.RECIPE.replace(epochs=2),
        after_epoch=lambda result, student: seen.append(knowledge.networks[1]),
    )  # fmt: skip
    assert [teacher is expected for teacher, expected in zip(seen, route, strict=True)] == [True, True]


@pytest.mark.parametrize("curriculum", [Fixed, tiny.TwoLessons])
@pytest.mark.parametrize("options", [{}, {"statistic": "weights"}], ids=str)
def test_resumed_is_uninterrupted_to_the_bit(tmp_path, options, curriculum):
    route = [network("cnn6x4", seed=1), network("cnn6x4", seed=2)]
    tiny.check_resume(curriculum() * (KR(**options) + KD()), Teachers(route=route), tmp_path, (2, 4), student=network)
