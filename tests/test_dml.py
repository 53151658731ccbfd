"""DML: the loss against NumPy, the updates against a plain loop, resuming, and who learns."""

import copy

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F

from kd.errors import ConfigError
from kd.methods import Fixed, Method, Teachers
from kd.methods.dml import DML, fresh_copy
from kd.methods.iekd import IEDML
from kd.methods.kd import KD
from kd.methods.rco import RCO
from kd.models import Output, Tapped, build
from kd.training import distill


def test_the_term_is_the_divergence_from_the_other():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(7, 5, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    p, q = tiny.softmax(a.detach().numpy()), tiny.softmax(b.detach().numpy())
    expected = 3 * np.mean((q * np.log(q / p)).sum(1))
    term = DML(weight=3).mutual(Output(a, ()), Output(b, ()), peer_learns=False)["mutual"]
    assert float(term.detach()) == pytest.approx(expected, abs=1e-12)
    term.backward()
    assert a.grad is not None and b.grad is None  # the other's predictions are constants
    same = DML().mutual(Output(a, ()), Output(a, ()), peer_learns=True)["mutual"]
    assert float(same.detach()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("update", ["alternating", "simultaneous"])
def test_the_updates_are_those_of_a_plain_loop(update):
    """The loop of the repository, gradients left in the other's predictions: the same weights come out."""
    data, recipe = tiny.data(), tiny.RECIPE.replace(epochs=2, channels_last=False)
    student, method = tiny.network(), DML(weight=0.7, update=update)
    first = copy.deepcopy(student)
    torch.manual_seed(3 + 7919)
    second = build("cnn3x4", 3, 1)
    distill(student, method, None, data, recipe, seed=3)
    networks = [first.train(), second.train()]
    optimizers = [recipe.build_optimizer(list(network.parameters())) for network in networks]

    def loss(mine, other, labels):
        divergence = F.kl_div(F.log_softmax(mine.logits, 1), F.softmax(other.logits, 1), reduction="batchmean")
        return F.cross_entropy(mine.logits, labels) + 0.7 * divergence

    for epoch in range(2):
        for step, batch in enumerate(data.batches(3, epoch, 16)):
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = recipe.learning_rate_at((epoch * 3 + step) / 6)
            if update == "simultaneous":
                outputs = [network(batch.images) for network in networks]
                for optimizer in optimizers:
                    optimizer.zero_grad()
                gradients = [
                    torch.autograd.grad(
                        loss(outputs[i], outputs[1 - i], batch.labels),
                        list(networks[i].parameters()),
                        retain_graph=True,
                    )
                    for i in (0, 1)
                ]
                for i in (0, 1):
                    for parameter, gradient in zip(networks[i].parameters(), gradients[i], strict=True):
                        parameter.grad = gradient.clone(memory_format=torch.contiguous_format)
                    optimizers[i].step()
            else:
                for i in (0, 1):
                    outputs = [network(batch.images) for network in networks]
                    optimizers[i].zero_grad()
                    loss(outputs[i], outputs[1 - i], batch.labels).backward()
                    optimizers[i].step()
    for network, other in ((first, student), (second, method.peer)):
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_the_two_updates_differ():
    ends = [tiny.run(DML(update=update), None)[1].head.weight for update in ("alternating", "simultaneous")]
    assert not torch.equal(*ends)


def test_the_peer_is_another_network_of_the_same_kind():
    student = tiny.network()
    method = DML()
    distill(student, method, None, tiny.data(), tiny.RECIPE.replace(epochs=1))
    assert method.peer.name == "cnn3x4"
    torch.manual_seed(7919)
    start = build("cnn3x4", 3, 1)
    assert tiny.changed(start, tiny.snapshot(tiny.network()))  # other initial weights than the student's
    assert tiny.changed(method.peer, tiny.snapshot(start))  # and it has learnt
    _, _, wider = tiny.run(DML(peer="cnn3x8"), None)
    assert wider.peer.name == "cnn3x8"


def test_a_network_without_a_name_is_copied_and_drawn_anew():
    network = tiny.network()
    del network.name
    other = fresh_copy(network, 3)
    assert {n for n, _ in other.named_parameters() if n.endswith("0.weight")} <= tiny.changed(
        other, tiny.snapshot(network)
    )
    assert not tiny.changed(network, tiny.snapshot(tiny.network()))


def test_ones_own_tapped_network_has_a_peer_of_its_kind():
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 3)
    student, method = Tapped(torch.nn.Sequential(*layers), ["1"]), DML()
    before = tiny.snapshot(student)
    result = distill(student, method, None, tiny.data(), tiny.RECIPE.replace(learning_rate=1e-30, epochs=1))
    assert "peer_test" in result.measured
    assert tiny.changed(method.peer, before) == set(before)  # the same kind, other initial weights


@pytest.mark.parametrize("kind", [DML, IEDML])
def test_a_second_student_meets_a_peer_as_fresh_as_a_first(kind):
    used, student, recipe = kind(), tiny.network(), tiny.RECIPE.replace(epochs=2)
    distill(tiny.network(seed=1), used, None, tiny.data(), recipe)
    distill(student, used, None, tiny.data(), recipe, seed=3)
    _, expected, knowledge = tiny.run(kind(), None, recipe)
    assert not tiny.changed(student, tiny.snapshot(expected)) and not tiny.changed(used, tiny.snapshot(knowledge))


def test_the_record_holds_the_peer():
    result, _student, _knowledge = tiny.run(DML(), None, tiny.RECIPE.replace(epochs=10))
    assert set(result.measured) == {"peer_validation", "peer_test"}
    assert result.measured["peer_test"] > 60  # of three classes, a third by chance
    assert result.last["test"] > 60
    assert set(result.last["loss"]) == {"mutual", "labels", "peer mutual", "peer labels"}
    assert result.curve[-1]["loss"]["peer labels"] < 0.7 * result.curve[0]["loss"]["peer labels"]
    assert result.teacher_images == 0
    assert result.extra_parameters == sum(p.numel() for p in tiny.network().parameters())


@pytest.mark.parametrize("method", [DML(), DML(update="simultaneous", peer="cnn3x8"), DML() + KD()])
def test_resumed_to_the_bit(method, tmp_path):
    tiny.check_resume(method, tiny.teacher(), tmp_path, stops=(2,))


def test_composes_with_a_teacher_and_a_route():
    teacher = tiny.teacher()
    before = tiny.snapshot(teacher)
    result, *_ = tiny.run(RCO(anchors=2) * (DML() + KD()), Teachers(route=[tiny.network("cnn3x8"), teacher]))
    assert len(result.lessons) == 2 and {"mutual", "logits"} <= set(result.last["loss"])
    assert not tiny.changed(teacher, before)


def test_the_peer_keeps_what_it_learnt_when_the_teacher_changes_shape():
    class Shapes(list):
        def __len__(self):
            return 2

    class Two(Fixed):
        """Two lessons, from teachers of unlike shapes."""

        def next(self, done, epochs, teachers, student, data):
            from kd.methods import Lesson

            return None if len(done) == 2 else Lesson("route", (len(done),), 2, restart=True)

    peers = []

    def keep(result, student):
        peers.append(copy.deepcopy(knowledge.peer.state_dict()))

    knowledge = DML() + KD()
    method = Method(Two(), knowledge)
    knowledge = knowledge.parts()[0]
    distill(
        tiny.network(),
        method,
        Teachers(route=[tiny.teacher(), tiny.network("cnn3x4", 8)]),
        tiny.data(),
        tiny.RECIPE,
        after_epoch=keep,
    )
    assert not any(torch.equal(peers[1][n], v) for n, v in peers[2].items() if n == "head.weight")
    assert (peers[2]["head.weight"] - peers[1]["head.weight"]).norm() < (peers[1]["head.weight"]).norm()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: DML(weight=-1), "dml.weight"),
        (lambda: DML(update="alternate"), "did you mean 'alternating'"),
        (lambda: tiny.run(DML(peer="resnett20"), None), "resnett20"),
    ],
)
def test_bad_values_name_themselves(wrong, says):
    with pytest.raises(ConfigError, match=says):
        wrong()
