"""Phases: the state that one continues from, momentum, and resuming to the bit."""

import time

import pytest
import tiny
import torch

from kd import loop
from kd.errors import ConfigError
from kd.methods import Knowledge, Labels, Learner, Method, Phase
from kd.methods.kd import KD
from kd.models import evaluate
from kd.training import Checkpoint, distill, train


class Scored(Labels):
    """The labels alone, with scores made up beforehand, one an epoch that is a candidate."""

    def __init__(self, scores):
        super().__init__()
        self.scores = iter(scores)

    def amend(self, phase, student, teacher):
        phase.select = lambda entry: next(self.scores)


@pytest.mark.parametrize(("scores", "chosen"), [([3, 1, 1, 2], 1), ([2, 2, 2, 2], 0), ([4, 3, 2, 1], 3)])
def test_a_phase_ends_with_the_first_of_its_best_states(data, scores, chosen):
    student, states = tiny.network(), []
    recipe = tiny.RECIPE.replace(milestones=(0.25, 0.5, 0.7))
    result = distill(student, Scored(scores), None, data, recipe, after_epoch=lambda result, network: states.append(tiny.snapshot(network)))
    assert [e.get("score") for e in result.curve] == scores and result.last["chosen"] == chosen
    assert not tiny.changed(student, states[chosen])
    assert result.last["test"] == evaluate(student, data, "test")


@pytest.mark.parametrize("chosen", [0, 1])
def test_momentum_goes_on_with_the_last_state_alone(data, monkeypatch, chosen):
    remembered, original = [], loop.build_optimizers

    def watching(phase, states):
        remembered.append(None if states is None else len(states[0]["state"]))
        return original(phase, states)

    monkeypatch.setattr(loop, "build_optimizers", watching)
    student, recipe = tiny.network(), tiny.RECIPE.replace(milestones=(0.25, 0.75))
    scores = [[1, 2], [2, 1]][chosen] + [2, 1]
    result = distill(student, Method(tiny.TwoLessons(False), Scored(scores)), None, data, recipe)
    assert [e.get("chosen") for e in result.curve] == [None, chosen, None, 3]
    assert remembered == [None, chosen * len(list(student.parameters()))]


class WithModules(Knowledge):
    """Needs a preparing phase and a module that learns beside the student: everything a checkpoint has to hold."""

    def build(self, student, teacher, mine, theirs):
        self.regressor = torch.nn.Conv2d(mine.features[-1].shape[1], theirs.features[-1].shape[1], 1)
        self.scale = torch.nn.Linear(1, 1)

    def prepare(self, student, teacher, data, recipe, lesson):
        def loss(batch):
            return {"scale": (self.scale(torch.ones(1, 1)) - 3).square().sum()}

        yield Phase("scale", [Learner([self.scale], loss)], recipe.replace(epochs=2))

    def loss(self, student, teacher, batch):
        return {"hint": (self.regressor(student.features[-1]) - teacher.features[-1]).square().mean() * self.scale.weight.detach().sum()}

    def trained(self):
        return [self.regressor]


def forgetful():
    """A student that draws random numbers, whose state must survive."""
    student, dropout = tiny.network(), torch.nn.Dropout(0.3)
    student.head.register_forward_pre_hook(lambda module, inputs: dropout.train(module.training)(inputs[0]))
    return student


@pytest.mark.parametrize("restart", [True, False])
def test_an_interrupted_run_ends_in_the_same_bits(networks, tmp_path, restart):
    teacher, _ = networks
    method = tiny.TwoLessons(restart) * (WithModules() + KD())
    whole = tiny.check_resume(method, [teacher, teacher], tmp_path, range(1, 9), student=forgetful)
    assert [entry["phase"] for entry in whole.curve] == ["scale", "scale", "lesson", "lesson"] * 2


def test_a_killed_run_ends_in_the_same_bits(data, tmp_path):
    recipe, expected, student = tiny.RECIPE.replace(epochs=40), tiny.network(), tiny.network()
    where = Checkpoint(tmp_path / "run.safetensors", every=0, run="x")

    def work(say):
        train(tiny.network(), data, recipe, checkpoint=where, after_epoch=lambda result, _: say(len(result.curve)))

    with tiny.process(work) as (run, heard):
        while heard() < 5:
            pass
        time.sleep(0.003)  # somewhere within an epoch or a save
        run.kill()
    told = []
    train(student, data, recipe, checkpoint=where, report=told.append)
    assert 0 < len(told) <= 36  # it went on
    train(expected, data, recipe)
    assert not tiny.changed(student, tiny.snapshot(expected))


def test_a_checkpoint_of_another_run_is_refused(data, tmp_path):
    path = tmp_path / "run.safetensors"
    train(tiny.network(), data, tiny.RECIPE, checkpoint=Checkpoint(path, every=0, network="cnn3x4", data="digits"))
    with pytest.raises(ConfigError, match="of network 'cnn3x4', not 'cnn3x8'"):
        train(tiny.network("cnn3x8"), data, tiny.RECIPE, checkpoint=Checkpoint(path, every=0, network="cnn3x8", data="digits"))
    with pytest.raises(ConfigError, match="of data 'digits', not 'cifar10'"):
        train(tiny.network(), data, tiny.RECIPE, checkpoint=Checkpoint(path, every=0, network="cnn3x4", data="cifar10"))
