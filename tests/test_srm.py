"""SRM against derivations of its own: NumPy for the sparse block and the labels, snapshots for what each stage may change."""

import copy
import math

import numpy as np
import pytest
import tiny
import torch

from kd.errors import ConfigError
from kd.methods import Labels, Method, Teachers, freeze, make
from kd.methods.kd import KD
from kd.methods.srm import SRM, Codebook, HeldStatistics, image_loss, pixel_floor, pixel_loss, rebuilt, scores, sparse
from kd.models import Output, Supernet, evaluate
from kd.recipe import Recipe
from kd.training import distill

RECIPE = Recipe(epochs=3, batch_size=16, learning_rate=0.05)


@pytest.fixture(scope="module")
def data():
    return tiny.data(40, 12, 12, padding=1)


@pytest.fixture(scope="module")
def teacher(data):
    network = tiny.network("cnn3x8", 1)
    distill(network, Labels(), None, data, RECIPE)
    return freeze(network)


def student():
    return tiny.network(seed=2)


def started(srm, mine, theirs, dtype=torch.float64):
    """SRM with codebooks built for two Outputs of given features."""
    torch.manual_seed(5)
    srm.build(student(), torch.nn.BatchNorm2d(3), Output(None, mine), Output(None, theirs))
    return srm.to(dtype)


# the sparse block, by NumPy's own loops


def by_hand(x, codebook, intercept, atoms):
    """(similarities, sparse code, rebuilt features) at every position, one after another."""
    n, _, height, width = x.shape
    s, code, back = (
        np.zeros((n, codebook.shape[1], height, width)),
        np.zeros((n, codebook.shape[1], height, width)),
        np.zeros_like(x),
    )
    for i, h, w in np.ndindex(n, height, width):
        s[i, :, h, w] = 1 / (1 + np.exp(-(x[i, :, h, w] @ codebook + intercept)))
        kept = np.argsort(-s[i, :, h, w])[:atoms]
        code[i, kept, h, w] = s[i, kept, h, w]
        back[i, :, h, w] = codebook @ code[i, :, h, w]
    return s, code, back


@pytest.mark.parametrize("atoms", [1, 3, 10])
@pytest.mark.parametrize("exact", [False, True])
def test_sparse_block_is_that_of_a_loop_over_positions(atoms, exact):
    x, codebook, intercept = tiny.normal(2, 5, 3, 4), tiny.normal(5, 10, seed=1), tiny.normal(1, seed=2)
    s, code, back = by_hand(x.numpy(), codebook.numpy(), float(intercept), atoms)
    similarity = scores(x, codebook, intercept).sigmoid()
    assert np.allclose(similarity, s, atol=1e-12)
    ours = sparse(similarity, atoms, exact)
    assert np.allclose(ours, code, atol=1e-12)
    assert np.allclose(rebuilt(ours, codebook), back, atol=1e-11)
    assert (ours != 0).sum(1).eq(atoms).all()


def test_ties_keep_more_unless_exact():
    s = torch.tensor([0.9, 0.5, 0.5, 0.1]).view(1, 4, 1, 1)
    assert sparse(s, 2).flatten().tolist() == pytest.approx([0.9, 0.5, 0.5, 0])
    assert (sparse(s, 2, exact=True) != 0).sum() == 2
    assert (sparse(torch.full((1, 4, 1, 1), 0.5), 1) != 0).sum() == 4
    assert (sparse(torch.full((1, 4, 1, 1), 0.5), 1, exact=True) != 0).sum() == 1


@pytest.mark.parametrize("exact", [False, True])
def test_gradient_reaches_kept_entries_alone(exact):
    s = torch.tensor([0.9, 0.3, 0.5, 0.1]).view(1, 4, 1, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(sparse(s, 2, exact).sum(), s)
    assert gradient.flatten().tolist() == [1, 0, 1, 0]


def test_losses_equal_their_definitions():
    teacher_s, student_s = tiny.normal(3, 6, 2, 4).sigmoid(), tiny.normal(3, 6, 2, 4, seed=1).sigmoid()
    t, p = teacher_s.numpy(), student_s.numpy()
    exponentials = np.exp(p)
    total = 0.0
    for i, h, w in np.ndindex(3, 2, 4):
        total -= np.log(exponentials[i, t[i, :, h, w].argmax(), h, w] / exponentials[i, :, h, w].sum())
    assert float(pixel_loss(student_s, teacher_s)) == pytest.approx(total / 24, abs=1e-9)
    code = sparse(teacher_s, 2)
    q, p = code.numpy().mean((2, 3)), p.mean((2, 3))
    assert float(image_loss(student_s, code)) == pytest.approx(
        -(q * np.log(p) + (1 - q) * np.log(1 - p)).mean(), abs=1e-9
    )


@pytest.mark.parametrize(("codewords", "floor"), [(256, 4.552), (512, 5.242), (2048, 6.625)])
def test_pixel_floor(codewords, floor):
    assert pixel_floor(codewords) == pytest.approx(floor, abs=1e-3)
    index = torch.arange(codewords)
    perfect = torch.eye(codewords).view(codewords, codewords, 1, 1)[index]
    assert float(pixel_loss(perfect, perfect)) == pytest.approx(pixel_floor(codewords), rel=1e-5)
    spread = torch.rand(4, codewords, 3, 3, generator=torch.Generator().manual_seed(0))
    assert float(pixel_loss(spread, spread)) > pixel_floor(codewords)


def test_image_loss_is_smallest_where_the_means_agree():
    target = tiny.normal(2, 5, 3, 3).sigmoid()
    mean = target.mean((2, 3))
    entropy = -(mean * mean.log() + (1 - mean) * (1 - mean).log()).mean()
    assert float(image_loss(target, target)) == pytest.approx(float(entropy), abs=1e-12)
    for seed in range(5):
        assert image_loss(tiny.normal(2, 5, 3, 3, seed=seed + 1).sigmoid(), target) > entropy


# papers.md 2.ii: K and k at the three taps of the paper's teacher, from the code's int() rules


@pytest.mark.parametrize(
    ("mu", "codewords", "atoms"),
    [
        (1.5, [192, 384, 1536], {0.01: [1, 3, 15], 0.02: [3, 7, 30], 0.03: [5, 11, 46]}),
        (2.0, [256, 512, 2048], {0.01: [2, 5, 20], 0.02: [5, 10, 40], 0.03: [7, 15, 61]}),
        (3.0, [384, 768, 3072], {0.01: [3, 7, 30], 0.02: [7, 15, 61], 0.03: [11, 23, 92]}),
    ],
)
def test_codebook_sizes_of_the_paper(mu, codewords, atoms):
    for sparsity, expected in atoms.items():
        sizes = [SRM(codewords=mu, sparsity=sparsity).size(channels) for channels in (128, 256, 1024)]
        assert [size[0] for size in sizes] == codewords
        assert [size[1] for size in sizes] == expected
    assert SRM(codewords=2, sparsity=0.01).size(16) == (32, 1)  # the code's floor of one


def test_codebook_starts_in_the_ranges_of_the_code():
    torch.manual_seed(0)
    book = Codebook(16, 32)
    assert book.codewords.abs().max() <= math.sqrt(6 / 32)
    assert book.codewords.abs().max() > 0.9 * math.sqrt(6 / 32)
    assert -1 <= book.intercept.item() <= 1


# the stages' losses


@pytest.mark.parametrize("target", ["both", "pixel", "image"])
@pytest.mark.parametrize("sigmoid_logits", [True, False])
def test_stage_losses_equal_numpy(target, sigmoid_logits):
    theirs = tuple(tiny.normal(2, d, 8 // n, 8 // n, seed=n) for n, d in ((1, 6), (2, 10)))
    mine = tuple(tiny.normal(2, d, 8 // n, 8 // n, seed=9 + n) for n, d in ((1, 3), (2, 5)))
    srm = started(
        SRM(codewords=2, sparsity=0.1, target=target, taps=[0, 1], sigmoid_logits=sigmoid_logits), mine, theirs
    )
    outputs = Output(None, mine), Output(None, theirs)
    rebuilding, matching = srm.rebuilding_loss(outputs[1]), srm.matching_loss(*outputs)
    assert len(matching) == (4 if target == "both" else 2)
    for tap in (0, 1):
        book, guess = srm.teacher_codebooks[tap], srm.student_codebooks[tap]
        c, b = book.codewords.detach().numpy(), book.intercept.item()
        s, code, back = by_hand(theirs[tap].numpy(), c, b, max(1, int(c.shape[0] * 0.2)))
        assert rebuilding[f"rebuilding {tap}"].item() == pytest.approx(
            ((back - theirs[tap].numpy()) ** 2).mean(), abs=1e-9
        )
        z = np.einsum("ndhw,dk->nkhw", mine[tap].numpy(), guess.codewords.detach().numpy()) + guess.intercept.item()
        p = 1 / (1 + np.exp(-z))
        logits = p if sigmoid_logits else z
        chosen = np.take_along_axis(logits, s.argmax(1)[:, None], 1)[:, 0]
        pixel = (np.log(np.exp(logits).sum(1)) - chosen).mean()
        q, p = code.mean((2, 3)), p.mean((2, 3))
        image = -(q * np.log(p) + (1 - q) * np.log(1 - p)).mean()
        if target != "image":
            assert matching[f"pixel {tap}"].item() == pytest.approx(pixel, abs=1e-9)
        if target != "pixel":
            assert matching[f"image {tap}"].item() == pytest.approx(image, abs=1e-9)


def test_no_gradient_into_the_teacher_or_its_codebooks_in_stage_two():
    theirs = tuple(tiny.normal(2, 6, 4, 4, seed=n).requires_grad_() for n in range(3))
    mine = tuple(tiny.normal(2, 3, 4, 4, seed=5 + n).requires_grad_() for n in range(3))
    srm = started(SRM(), mine, theirs)
    sum(srm.matching_loss(Output(None, mine), Output(None, tuple(f.detach() for f in theirs))).values()).backward()
    assert all(p.grad is None for p in srm.teacher_codebooks.parameters())
    assert all(p.grad is not None for p in srm.student_codebooks.parameters())
    assert all(f.grad is not None for f in mine)


@pytest.mark.parametrize(("taps", "names"), [("last", ["last"]), ("middle", ["middle"]), ("all", ["0", "1", "2"]), ([0, -1], ["0", "-1"])])
def test_terms_are_named_by_their_taps(taps, names):
    features = tuple(tiny.normal(2, 4, 2, 2, seed=seed) for seed in range(3))
    srm, output = started(SRM(taps=taps), features, features), Output(None, features)
    assert list(srm.rebuilding_loss(output)) == [f"rebuilding {name}" for name in names]
    assert list(srm.matching_loss(output, output)) == [f"{term} {name}" for name in names for term in ("pixel", "image")]


def test_maps_of_other_sizes_are_averaged_down_and_the_pooled_tap_is_one_position():
    theirs, mine = (tiny.normal(2, 6, 8, 8),), (tiny.normal(2, 3, 4, 4, seed=1),)
    srm = started(SRM(taps=[0], pooled=True), mine, theirs)
    matching = srm.matching_loss(Output(None, mine), Output(None, theirs))
    assert list(matching) == ["pixel 0", "image 0", "pixel pooled", "image pooled"]
    small = theirs[0].view(2, 6, 4, 2, 4, 2).mean((3, 5))
    same = srm.matching_loss(Output(None, mine), Output(None, (small,)))
    for name, value in matching.items():
        assert value.item() == pytest.approx(same[name].item(), abs=1e-12)
    mean = theirs[0].mean((2, 3), keepdim=True)
    book = srm.teacher_codebooks[1]
    expected = ((rebuilt(sparse(book(mean), srm.atoms[1]), book.codewords) - mean) ** 2).mean()
    assert srm.rebuilding_loss(Output(None, theirs))["rebuilding pooled"].item() == pytest.approx(
        expected.item(), abs=1e-12
    )


# bad values


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"codeword": 2}, r"srm: unknown parameter 'codeword' \(did you mean 'codewords'\?\); known: codewords, sparsity"),
        ({"target": "pixels"}, r"srm\.target: 'pixels' must be 'both', 'pixel' or 'image' \(did you mean 'pixel'\?\)"),
        ({"sparsity": 1.5}, r"srm\.sparsity: 1\.5 must be less than or equal to 1"),
        ({"freeze_statistics": True}, "probe"),
        ({"within_budget": True, "every_lesson": True}, "every_lesson"),
        ({"drift": True, "every_lesson": True}, "srm.drift"),
    ],
)
def test_wrong_parameters(parameters, words):
    with pytest.raises(ConfigError, match=words):
        SRM(**parameters)


def test_problems_before_any_training(data, teacher):
    for srm, words in ((SRM(codewords=0.1), "codewords"), (SRM(taps=[0, 7]), "tap 7")):
        network = student()
        before = tiny.snapshot(network)
        with pytest.raises(ConfigError, match=words):
            distill(network, srm, teacher, data, RECIPE)
        assert not tiny.changed(network, before)
    with pytest.raises(ConfigError, match="needs a teacher"):
        distill(student(), SRM(), None, data, RECIPE)


# the stages, by what each changes and in which order


def watch(method, teacher, data, recipe=RECIPE, network=None):
    """Run; returns (result, network, {phase: (student's changed entries, knowledge's)})."""
    network = network or student()
    knowledge, seen, last = Method.of(method).knowledge, {}, {}

    def after_epoch(result, network):
        name = result.last["phase"]
        if last:
            seen.setdefault(name, (set(), set()))
            seen[name][0].update(tiny.changed(network, last["student"]))
            seen[name][1].update(tiny.changed(knowledge, last["knowledge"]))
        last.update(student=tiny.snapshot(network), knowledge=tiny.snapshot(knowledge))

    result = distill(network, method, teacher, data, recipe, after_epoch=after_epoch)
    return result, network, seen


def test_each_stage_changes_what_it_should(data, teacher):
    before = tiny.snapshot(teacher)
    recipe = RECIPE.replace(epochs=5)
    result, network, seen = watch(SRM(codebook_epochs=0.8), teacher, data, recipe)
    assert not tiny.changed(teacher, before) and not teacher.training
    everything = set(network.state_dict())
    assert seen["codebooks"][0] == set()
    assert seen["codebooks"][1] == {f"teacher_codebooks.{i}.{p}" for i in range(3) for p in ("codewords", "intercept")}
    assert seen["initialisation"][0] >= {n for n in everything if "weight" in n and "head" not in n}
    assert not any("head" in name for name in seen["initialisation"][0])
    # the first epoch of stage 2 is compared with the last of stage 1, so the teacher's codebooks must not appear
    assert seen["initialisation"][1] == {
        f"student_codebooks.{i}.{p}" for i in range(3) for p in ("codewords", "intercept")
    }
    assert seen["lesson"][0] == everything and seen["lesson"][1] == set()
    assert [e["phase"] for e in result.curve] == ["codebooks"] * 4 + ["initialisation"] * 4 + ["lesson"] * 5
    assert result.extra_parameters == sum(c * k + 1 + s * k + 1 for c, s, k in ((8, 4, 16), (16, 8, 32), (32, 16, 64)))
    assert result.measured["srm_codewords"] == [16, 32, 64] and result.measured["srm_atoms"] == [1, 1, 1]


def test_labels_of_the_data_play_no_part_before_the_lessons(data, teacher):
    other = copy.copy(data)
    other.labels = {split: (labels + 1) % 3 for split, labels in data.labels.items()}
    ends = []
    for version in (data, other):
        result, _, _ = watch(SRM(), teacher, version)
        ends.append([e["loss"] for e in result.curve if e["phase"] != "lesson"])
    assert ends[0] == ends[1]


def test_probe_learns_the_head_alone(data, teacher):
    for hold in (False, True):
        _, network, seen = watch(SRM(probe=True, freeze_statistics=hold), teacher, data)
        names = set(network.state_dict())
        moving = set() if hold else {n for n in names if "running" in n or "num_batches" in n}
        # the first epoch of the lessons is compared with the last of stage 2
        assert seen["lesson"][0] == {"head.weight", "head.bias"} | moving
    held = HeldStatistics(network.train()).train()
    assert len(held.norms) == 3 and not any(norm.training for norm in held.norms) and network.training


def test_target_image_leaves_no_pixel_term(data, teacher):
    result, _, _ = watch(SRM(target="image"), teacher, data)
    terms = next(e for e in result.curve if e["phase"] == "initialisation")["loss"]
    assert set(terms) == {"image 0", "image 1", "image -1"}


def test_drift_moves_a_copy_of_the_statistics_and_only_in_stage_one(data, teacher):
    before = tiny.snapshot(teacher)
    srm = SRM(drift=True)
    _, _, seen = watch(srm, teacher, data)
    assert not tiny.changed(teacher, before) and not teacher.training
    kept = {name.replace(":", "."): value for name, value in srm.statistics.named_buffers()}
    assert kept.keys() == dict(teacher.named_buffers()).keys()
    assert any(not torch.equal(value, before[name]) for name, value in kept.items())
    assert not any("statistics" in name for name in seen["initialisation"][1] | seen["lesson"][1])
    # independently: momentum's running average over the very batches that stage 1 saw
    twin = copy.deepcopy(teacher).train()
    srm = SRM(drift=True)
    with torch.no_grad():
        images = next(iter(data.batches(0, 0, 16))).images
        srm.build(student(), teacher, student()(images), teacher(images))
        for batch in data.batches(0, 1, 16):
            twin(batch.images)
            srm.look(teacher, batch.images, "fp32", learning=True)
        theirs = srm.look(teacher, images, "fp32").features
        expected = twin.eval()(images).features
    assert all(torch.allclose(a, b) for a, b in zip(theirs, expected, strict=True))


def test_fresh_optimizer_and_learning_rates(data, teacher):
    recipe = RECIPE.replace(epochs=20, momentum=0.5)
    network, example = student(), next(iter(data.chunks("train", 8))).images
    for fresh in (True, False):
        srm = SRM(fresh_optimizer=fresh)
        with torch.no_grad():
            srm.build(network, teacher, network(example), teacher(example))
        phases = list(srm.prepare(network, teacher, data, recipe, 0))
        rates = {"codebooks": [], "initialisation": []}
        for phase in phases:
            start, stop = phase.span
            for epoch in range(phase.recipe.epochs):
                rates[phase.name].append(phase.recipe.learning_rate_at(start + (stop - start) * epoch / phase.recipe.epochs))
            assert phase.recipe.optimizer == "adam"
            assert phase.recipe.weight_decay == (0 if phase.name == "codebooks" else 1e-4)
            assert phase.student_epochs == (phase.name == "initialisation")
        assert rates["codebooks"] == pytest.approx([1e-3] * 1 + [1e-4] * 6 + [1e-5] * 3)
        assert rates["initialisation"] == pytest.approx([1e-3] * 3 + [1e-4] * 10 + [1e-5] * 3)
        assert len(phases) == (6 if fresh else 2)


def test_budgets():
    assert SRM().epochs(200) == (100, 160)
    assert SRM().warm_up(200) == (160, 0)
    codebooks, spent = SRM(within_budget=True).epochs(180)
    assert (codebooks, spent) == (50, 80) and SRM(within_budget=True).warm_up(180) == (80, 80)
    assert SRM(warm_up=0, codebook_epochs=0).epochs(20) == (0, 0)


def test_within_budget_gives_equal_student_epochs(data, teacher):
    result, _, _ = watch(SRM(within_budget=True) + KD(), teacher, data, RECIPE.replace(epochs=9))
    phases = [e["phase"] for e in result.curve if "test" in e]
    assert phases == ["initialisation"] * 4 + ["lesson"] * 5
    assert result.teacher_images == 40 * len(result.curve)


def test_training_improves_the_stages_own_objectives(data, teacher):
    result, _, _ = watch(SRM(learning_rate=0.03, codebook_epochs=1, warm_up=1), teacher, data, RECIPE.replace(epochs=10))
    for phase, kind in (("codebooks", "rebuilding"), ("initialisation", "pixel"), ("initialisation", "image")):
        losses = [
            sum(v for n, v in e["loss"].items() if n.startswith(kind)) for e in result.curve if e["phase"] == phase
        ]
        floor = sum(pixel_floor(k) for k in (16, 32, 64)) if kind == "pixel" else 0
        # what lies above the floor shrinks by a tenth at least
        assert floor < losses[-1] < floor + 0.9 * (losses[0] - floor), (phase, kind, losses)


def test_without_stages_srm_is_plain_distillation(data, teacher):
    ends = []
    for method in (KD(), SRM(warm_up=0, codebook_epochs=0) + KD()):
        network = student()
        distill(network, method, teacher, data, RECIPE)
        ends.append(tiny.snapshot(network))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("every", [False, True])
def test_composes_with_a_curriculum(data, teacher, every):
    result, _, _ = watch(tiny.TwoLessons(True) * (KD() + SRM(every_lesson=every)), [teacher, teacher], data, RECIPE.replace(epochs=4))
    preparing = [e["lesson"] for e in result.curve if e["phase"] == "initialisation"]
    assert preparing == ([0] * 3 + [1] * 3 if every else [0] * 3)
    assert [e["lesson"] for e in result.curve if e["phase"] == "lesson"] == [0, 0, 1, 1]
    assert all(set(e["loss"]) == {"logits", "labels"} for e in result.curve if e["phase"] == "lesson")


@pytest.mark.parametrize("curriculum", ["rco", "pwkd"])
def test_composes_with_the_papers_curricula(data, teacher, curriculum):
    supernet = Supernet(tiny.network("cnn3x8", 4), [0.5, 1.0])
    widths = [copy.deepcopy(supernet).select(index).eval() for index in range(2)]
    route = [tiny.network("cnn3x8", seed).eval() for seed in (7, 8)] + [teacher]
    method = make(["srm", "kd"], curriculum)
    network = student()
    result = distill(network, method, Teachers(route=route, supernet=widths), data, RECIPE.replace(epochs=12))
    assert len(result.lessons) > 1
    assert {e["lesson"] for e in result.curve if e["phase"] == "initialisation"} == {0}
    assert math.isfinite(result.last["loss"]["logits"])


# the best of a stage's states


class Rising(SRM):
    """SRM whose learning rate rises tenfold where it should fall, so that a stage's last state is not its best."""

    def __init__(self, **options):
        super().__init__(selection=True, drift=True, codebook_epochs=1, warm_up=0.75, learning_rate=0.03, **options)
        self.common["gamma"] = 30.0


RISING = RECIPE.replace(epochs=4, milestones=[0.25, 0.6], gamma=10.0)
STAGES = {"codebooks": 4, "initialisation": 3, "lesson": 4}


def states(method, teacher, data, recipe, network):
    """Run; returns (result, [(the student's, the knowledge's snapshot) after each epoch])."""
    found, knowledge = [], Method.of(method).knowledge

    def keep(result, network):
        found.append((tiny.snapshot(network), tiny.snapshot(knowledge)))

    return distill(network, method, teacher, data, recipe, after_epoch=keep), found


@pytest.mark.parametrize("fresh", [True, False])
def test_selection_goes_on_with_the_best_state_of_a_stage(data, teacher, fresh):
    srm, network = Rising(fresh_optimizer=fresh), student()
    result, found = states(srm, teacher, data, RISING, network)
    assert [e["phase"] for e in result.curve] == [phase for phase, epochs in STAGES.items() for _ in range(epochs)]
    # ends of learning-rate segments, by hand: after epochs 1, 3 and 4 of stage 1, 1, 2 and 3 of stage 2, 1, 3 and 4 of stage 3
    scored = {number: e["score"] for number, e in enumerate(result.curve) if "score" in e}
    assert list(scored) == [0, 2, 3, 4, 5, 6, 7, 9, 10]
    for last, candidates in ((3, (0, 2, 3)), (6, (4, 5, 6)), (10, (7, 9, 10))):
        chosen = result.curve[last]["chosen"]
        assert chosen == min(candidates, key=scored.get) and chosen != last
        for after, before in zip(found[last], found[chosen], strict=True):
            assert all(torch.equal(after[name], before[name]) for name in before)
    assert [number for number, e in enumerate(result.curve) if "chosen" in e] == [3, 6, 10]
    for number in (0, 2, 3):
        assert scored[number] == sum(result.curve[number]["loss"].values())
    for number in (7, 9):
        assert scored[number] == -result.curve[number]["validation"]
    # what the record says of the run's end is true of the network it ends with
    for split in ("validation", "test"):
        assert result.last[split] == evaluate(network, data, split) == result.curve[result.last["chosen"]][split]


def test_validation_loss_is_the_mean_of_the_stages_loss_and_moves_nothing(data, teacher):
    srm, network = Rising(), student()
    result, found = states(srm, teacher, data, RISING, network)
    for number in (4, 5):  # the states of stage 2 that are on hand as they were scored
        network.load_state_dict(found[number][0])
        srm.load_state_dict(found[number][1])
        network.eval()
        losses = []
        with torch.no_grad():
            for batch in data.chunks("validation", 1):
                theirs = srm.look(teacher, batch.images, "fp32")
                losses.append(float(sum(srm.matching_loss(network(batch.images), theirs).values())))
        assert result.curve[number]["score"] == pytest.approx(np.mean(losses), rel=1e-5)
        before = tiny.snapshot(network), tiny.snapshot(srm)
        small = srm.validation_loss(network.train(), teacher, data, RISING.replace(batch_size=5))  # the last of 12 are two
        assert small == pytest.approx(np.mean(losses), rel=1e-5)
        assert not tiny.changed(network, before[0]) and not tiny.changed(srm, before[1])
        assert all(p.grad is None for p in srm.teacher_codebooks.parameters())


def test_selection_of_the_last_state_changes_nothing(data, teacher, monkeypatch):
    falling = iter(range(100, 0, -1))
    monkeypatch.setattr(SRM, "validation_loss", lambda *_: next(falling))
    monkeypatch.setattr(SRM, "score", lambda srm, _: next(falling) if srm.selection else None)
    ends = []
    for selection in (False, True):
        network = student()
        result, found = states(SRM(selection=selection, codebook_epochs=0.3) + KD(), teacher, data, RECIPE, network)
        ends.append((result.curve, found[-1]))
        choices = [(number, e["chosen"]) for number, e in enumerate(result.curve) if "chosen" in e]
        assert all(number == chosen for number, chosen in choices) and len(choices) == 3 * selection
    for entry in ends[1][0]:
        entry.pop("score", None), entry.pop("chosen", None)
    assert ends[0][0] == ends[1][0]
    for plain, chosen in zip(ends[0][1], ends[1][1], strict=True):
        assert all(torch.equal(plain[name], chosen[name]) for name in plain)


def test_without_milestones_the_lesson_offers_its_last_state_alone(data, teacher):
    recipe = RISING.replace(schedule="cosine")
    result, _ = states(Rising() + KD(), teacher, data, recipe, student())
    assert ["score" in e for e in result.curve if e["phase"] == "lesson"] == [False, False, False, True]
    assert result.last["chosen"] == len(result.curve) - 1


def test_selection_needs_validation_images(data, teacher):
    without = copy.copy(data)
    without.images = data.images | {"validation": data.images["validation"][:0]}
    without.labels = data.labels | {"validation": data.labels["validation"][:0]}
    network = student()
    before = tiny.snapshot(network)
    with pytest.raises(ConfigError, match="srm.selection") as raised:
        distill(network, KD() + SRM(selection=True), teacher, without, RECIPE)
    assert "\n" not in str(raised.value) and not tiny.changed(network, before)
    distill(network, KD() + SRM(), teacher, without, RECIPE)


def test_resumed_is_uninterrupted_to_the_bit(data, teacher, tmp_path):
    method = SRM(drift=True, codebook_epochs=1, warm_up=0.75, learning_rate=0.01) + KD()
    whole = tiny.check_resume(method, teacher, tmp_path, (2, 4, 6, 8), RECIPE.replace(epochs=4), student=student, of=lambda: data)
    assert len(whole.curve) == 11


@pytest.mark.parametrize(("fresh", "restart"), [(True, True), (False, False)])
def test_resumed_across_choices_is_uninterrupted_to_the_bit(data, teacher, tmp_path, fresh, restart):
    method, recipe = tiny.TwoLessons(restart) * (Rising(fresh_optimizer=fresh) + KD()), RISING.replace(milestones=[0.25, 0.75])
    whole = tiny.check_resume(method, [teacher, teacher], tmp_path, range(2, 12), recipe, seed=0, student=student, of=lambda: data)
    choices = [(number, e["chosen"]) for number, e in enumerate(whole.curve) if "chosen" in e]
    lessons = [e["lesson"] for e in whole.curve]
    assert len(choices) == 4 and all(lessons[number] == lessons[chosen] for number, chosen in choices)
    assert sum(number != chosen for number, chosen in choices) >= 3  # so that there is something to lose


def test_same_seed_same_bytes(data, teacher):
    ends = []
    for _ in range(2):
        network = student()
        distill(network, SRM() + KD(), teacher, data, RECIPE, seed=3)
        ends.append(tiny.snapshot(network))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_the_teacher_is_not_asked_where_nothing_is_learnt_from_it(data, teacher):
    result, _, _ = watch(SRM(), teacher, data, RECIPE)
    preparing = [e for e in result.curve if e["phase"] != "lesson"]
    assert result.teacher_images == 40 * len(preparing)
    result, _, _ = watch(SRM() + KD(), teacher, data, RECIPE)
    assert result.teacher_images == 40 * len(result.curve)
