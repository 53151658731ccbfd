"""What a record says of a run beside its accuracy: the cost of its training, and its teacher's accuracy."""

import pytest
import tiny

from kd.loop import Run
from kd.methods import Method, Teachers, make
from kd.models import complexity
from kd.study.runs import teacher_accuracy, training_multiply_adds
from kd.training import steps


def finished(data, method, teachers):
    run = Run(tiny.network(), Method.of(method), Teachers.of(teachers), data, tiny.RECIPE)
    for _ in steps(run):
        pass
    return run


def test_training_cost_by_hand():
    """4 epochs: of the student 3 forward passes' worth each, of the teacher one; SRM's preparing epochs on top."""
    data, teacher = tiny.data(), tiny.network("cnn6x16")
    own, theirs = (complexity(network, data.image_shape)[1] for network in (tiny.network(), teacher))
    run = finished(data, make(["kd"]), teacher)
    assert training_multiply_adds(run, 4, own) == pytest.approx(3 * 4 * own + 4 * theirs)
    assert training_multiply_adds(finished(data, make(["labels"]), None), 4, own) == 3 * 4 * own
    run = finished(data, make(["kd"], "rco", {"rco": {"strategy": "one-stage", "anchors": 2}}), Teachers(route=[teacher, teacher]))
    assert training_multiply_adds(run, 4, own) == pytest.approx(3 * 4 * own + 4 * theirs)


def test_the_teachers_accuracy_is_its_files():
    class Stated(list):
        accuracy = [{"test": 50.0}, {"test": 75.0}]

    data, teacher = tiny.data(), tiny.network("cnn6x16")
    assert teacher_accuracy(finished(data, make(["kd"]), Teachers(route=Stated([teacher, teacher])))) == 75.0
    assert teacher_accuracy(finished(data, make(["kd"]), teacher)) is None  # no file says how good it is
    assert teacher_accuracy(finished(data, make(["labels"]), None)) is None
