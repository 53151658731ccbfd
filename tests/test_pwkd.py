"""PWKD: which width teaches when, its learning-rate cycles, regressors that follow the width, resuming to the bit."""

import pytest
import tiny
import torch

from kd import loop
from kd.errors import ConfigError
from kd.methods import Fixed, Method, Teachers
from kd.methods.attention import AT
from kd.methods.hints import FitNet
from kd.methods.kd import KD, softened_divergence
from kd.methods.pwkd import PWKD, spread
from kd.methods.rco import RCO
from kd.models import Supernet, build
from kd.study.tables import load_table, table_names
from kd.training import distill


class Nested(list):
    """Sub-networks in memory, each a copy of the supernet with its own active width."""

    def __init__(self, supernet):
        import copy

        super().__init__(copy.deepcopy(supernet).select(i).eval() for i in range(len(supernet.widths)))
        self.widths = supernet.widths


@pytest.fixture(scope="module")
def data():
    return tiny.data(36, 12, 12)


@pytest.fixture(scope="module")
def teachers():
    torch.manual_seed(0)
    return Teachers(supernet=Nested(Supernet(build("cnn3x4", 3, 1), (0.25, 0.5, 0.75, 1.0))))


def student():
    return tiny.network("cnn3x2", 1)


def test_spread_of_stages():
    assert [spread(4, n) for n in (1, 2, 3, 4)] == [[3], [1, 3], [1, 2, 3], [0, 1, 2, 3]]
    for widths in range(1, 9):
        for stages in range(1, widths + 1):
            chosen = spread(widths, stages)
            assert chosen[-1] == widths - 1 and len(set(chosen)) == stages and chosen == sorted(chosen) and chosen[0] >= 0


def test_lessons_of_each_order(teachers, data):
    def plan(**options):
        return [(x.indices, x.epochs, x.restart, x.schedule) for x in tiny.lessons(PWKD(**options), 20, teachers, data)]

    assert plan() == [((i,), 5, True, "cosine") for i in range(4)]
    assert plan(order="wide to narrow") == [((i,), 5, True, "cosine") for i in (3, 2, 1, 0)]
    assert plan(order="together") == [((0, 1, 2, 3), 20, True, "cosine")]
    assert plan(stages=2, schedule="triangular") == [((1,), 10, True, "triangular"), ((3,), 10, True, "triangular")]
    assert plan(restart=False, schedule="recipe", stages=1) == [((3,), 20, False, None)]
    assert [epochs for _, epochs, _, _ in plan(split="width")] == [2, 4, 6, 8]
    told = tiny.lessons(PWKD(stages=2), 20, teachers, data)
    assert [x.info for x in told] == [{"widths": [0.5]}, {"widths": [1.0]}] and told[0].name == "width 0.5"
    assert all(x.source == "supernet" for x in told)


def test_each_stage_learns_from_its_width_with_its_cycle(teachers, data):
    """The width that teaches, and the learning rate at every step, as the optimizer saw it."""
    widths, rates, real = [], [], torch.optim.SGD.step
    hooks = [n.register_forward_pre_hook(lambda m, x, i=i: widths.append(i)) for i, n in enumerate(teachers["supernet"])]

    def step(self, *arguments, **options):
        rates.append(self.param_groups[0]["lr"])
        return real(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", step)
        recipe = tiny.LONGER.replace(epochs=4, learning_rate=1.0)
        result = distill(student(), PWKD(stages=2) * KD(), teachers, data, recipe)
        cyclic, rates = rates, []
        distill(student(), PWKD(stages=2, restart=False) * KD(), teachers, data, recipe)
    for hook in hooks:
        hook.remove()
    steps = data.steps(recipe.batch_size)
    assert widths[: len(widths) // 2] == [1] * (2 * steps + 1) + [3] * (2 * steps + 1)
    assert result.teacher_images == 4 * len(data.labels["train"])
    progress = torch.arange(2 * steps) / (2 * steps)
    cycle = (1 + torch.cos(torch.pi * progress)) / 2
    torch.testing.assert_close(torch.tensor(cyclic), torch.cat([cycle, cycle]))
    once = (1 + torch.cos(torch.pi * torch.arange(4 * steps) / (4 * steps))) / 2
    torch.testing.assert_close(torch.tensor(rates), once)


def test_no_restart_keeps_the_momentum_when_nothing_new_learns(data):
    """Two stages from equal teachers without a restart are one long stage, to the bit, though the features' shapes change."""
    torch.manual_seed(0)
    supernet = Supernet(build("cnn3x4", 3, 1), (0.5, 1.0))
    nested = Nested(supernet)

    class Same(torch.nn.Module):
        """The whole network's logits beside a narrow one's features."""

        def forward(self, images):
            return nested[0](images)._replace(logits=nested[1](images).logits)

    def weights(method, networks):
        mine = student()
        distill(mine, method, Teachers(supernet=networks), data, tiny.LONGER.replace(epochs=4), seed=3)
        return torch.cat([p.flatten() for p in mine.parameters()])

    whole = weights(Method(Fixed("supernet"), KD()), [nested[1]])
    assert torch.equal(weights(PWKD(restart=False, schedule="recipe") * KD(), [Same(), nested[1]]), whole)
    assert not torch.equal(weights(PWKD(schedule="recipe") * KD(), [Same(), nested[1]]), whole)


def test_regressors_built_anew_begin_without_the_momentum_of_the_old(teachers, data, monkeypatch):
    begun, original = [], loop.build_optimizers

    def watching(phase, states):
        begun.append(states)
        return original(phase)  # momentum of another shape would be read past its end

    monkeypatch.setattr(loop, "build_optimizers", watching)
    distill(student(), PWKD(restart=False, stages=2) * FitNet(), teachers, data, tiny.LONGER.replace(epochs=2))
    assert begun == [None, None]


def test_together_is_the_mean_over_widths(teachers, data):
    torch.manual_seed(5)
    losses = []
    mine = student().eval()
    batch = next(iter(data.batches(0, 0, 36)))
    reference = student().train()(batch.images)
    with torch.no_grad():
        expected = sum(0.9 * softened_divergence(reference.logits, n(batch.images).logits, 4.0) for n in teachers["supernet"]) / 4
    distill(mine, PWKD("together") * KD(), teachers, data, tiny.LONGER.replace(epochs=1, batch_size=36), after_epoch=lambda r, s: losses.append(r.last["loss"]))
    assert abs(losses[0]["logits"] - float(expected)) < 1e-5


def test_teachers_stay_as_they_are(teachers, data):
    before = [{k: v.clone() for k, v in n.state_dict().items()} for n in teachers["supernet"]]
    distill(student(), PWKD() * (KD() + AT()), teachers, data, tiny.LONGER.replace(epochs=4))
    for network, state in zip(teachers["supernet"], before, strict=True):
        assert all(torch.equal(state[k], v) for k, v in network.state_dict().items()) and not network.training
        assert all(p.grad is None for p in network.parameters())


def test_regressors_follow_the_width(teachers, data):
    method, seen = PWKD() * (FitNet(regressor="plain") + KD()), []

    def look(result, network):
        seen.append([tuple(p.shape) for p in method.knowledge.parameters() if p.ndim == 4])

    distill(student(), method, teachers, data, tiny.LONGER.replace(epochs=4), after_lesson=look)
    assert seen == [[(channels, 4, 1, 1)] for channels in (2, 4, 6, 8)]
    with pytest.raises(ConfigError, match="FitNet learns weights for one teacher's features"):
        distill(student(), PWKD("together") * FitNet(), teachers, data, tiny.LONGER)
    distill(student(), PWKD("together") * AT(), teachers, data, tiny.LONGER.replace(epochs=1))  # attention has no channels


@pytest.mark.parametrize("method", [lambda: PWKD(stages=2) * (FitNet() + KD()), lambda: PWKD(restart=False) * AT()])
def test_stopped_and_resumed_is_uninterrupted(method, teachers, data, tmp_path):
    recipe = tiny.LONGER.replace(epochs=8)
    tiny.check_resume(method(), teachers, tmp_path, (3, 5, 8), recipe, student=student, of=lambda: data)


def test_the_student_comes_nearer_to_the_whole_teacher(teachers, data):
    images = next(iter(data.chunks("validation", 99))).images
    mine, whole = student(), teachers["supernet"][-1]

    def distance():
        with torch.no_grad():
            return float(softened_divergence(mine.eval()(images).logits, whole(images).logits, 4.0))

    before = distance()
    distill(mine, PWKD() * KD(alpha=1.0), teachers, data, tiny.LONGER.replace(epochs=8))
    assert distance() < 0.8 * before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order": "narow to wide"}, r"did you mean 'narrow to wide'\?"),
        ({"schedules": "cosine"}, r"did you mean 'schedule'\?"),
        ({"stages": 0}, r"pwkd\.stages: 0 must be greater than 0"),
        ({"restart": "no"}, r"pwkd\.restart: 'no' must be true or false"),
    ],
)
def test_wrong_parameters(options, words):
    with pytest.raises(ConfigError, match=words):
        PWKD(**options)


def test_what_does_not_fit_the_supernet(teachers, data):
    with pytest.raises(ConfigError, match="5 stages, but the supernet has 4 widths"):
        tiny.lessons(PWKD(stages=5), 20, teachers, data)
    with pytest.raises(ConfigError, match="3 epochs do not suffice for 4 lessons"):
        tiny.lessons(PWKD(), 3, teachers, data)
    with pytest.raises(ConfigError, match="needs a supernet"):
        distill(student(), PWKD() * KD(), build("cnn3x4", 3, 1), data, tiny.LONGER)
    with pytest.raises(ConfigError, match="needs a route"):
        distill(student(), RCO() * KD(), teachers, data, tiny.LONGER)


def test_no_figure_of_this_paper_is_known():
    assert not any("reported" in row for name in table_names("pwkd") for row in load_table(name)["rows"])
