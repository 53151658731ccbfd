"""DML: deep mutual learning (Zhang, Xiang, Hospedales, Lu, CVPR 2018, arXiv 1706.00384).

    L_1 = CE(z_1, y) + weight * KL( softmax(z_2) || softmax(z_1) )          and the same with 1 and 2 exchanged

No teacher: two fresh networks learn from the labels and from each other's predictions. z: logits; KL in nats, mean over
the batch, temperature 1.

Readings and deviations, all of them:
* update="alternating": network 1 steps, both networks look at the batch again, then network 2 steps. So the paper's
  Algorithm 1 and the loop in IE-KD's repository (aliyun/Revisiting-Knowledge-Distillation-..., processors/DML.py,
  loss/mutual.py), in train mode throughout. "simultaneous" lets both learn from what they said before either stepped,
  and saves two forward passes.
* The other network's predictions are constants here. That repository leaves the gradient in them, but drops it before
  the other network's step, so the updates are the same.
* weight 1: the paper, and the one config there that sets it (cifar100/resnet56-20.yaml); that code's default is 0.
* peer=None takes the student's own architecture with other initial weights; a name takes another network.
* The student's accuracy is the headline; the peer's stands in the record. That repository reports the better one.
* Under a curriculum both keep learning from lesson to lesson; the peer's optimizer starts anew with the student's.
"""

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from kd.errors import NonNegative, checked
from kd.methods.base import Knowledge, Learner
from kd.methods.kd import softened_divergence
from kd.models import Supernet, Tapped, build, evaluate, run_networks


def fresh_copy(student, classes, name=None):
    """An untrained network: the one called `name`, else the student's architecture with other initial weights."""
    if not isinstance(student, (Tapped, Supernet)):  # these pass on the name of what they hold
        name = name or getattr(student, "name", None)
    if name:
        channels = next(m.in_channels for m in student.modules() if isinstance(m, nn.Conv2d))
        return build(name, classes, channels)
    network = copy.deepcopy(student)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return network


@checked("dml")
class DML(Knowledge):
    """weight: >= 0, of the divergence. update: "alternating" or "simultaneous". peer: None or a network's name."""

    needs_teacher = False

    def __init__(
        self,
        weight: NonNegative = 1.0,  # the paper; config/DML/cifar100/resnet56-20.yaml
        update: Literal["alternating", "simultaneous"] = "alternating",  # the paper's Algorithm 1, processors/DML.py
        peer: str | None = None,  # the paper's main table: two networks of one architecture
    ):
        super().__init__()
        self.weight, self.update, self.peer_name = weight, update, peer
        self.peer = None
        self.looked = ()  # (batch, Outputs of student and peer) of the student's step, which the peer's step follows
        self.of = ()  # the student that the peer learns with; in a tuple, so that it is no submodule

    def build(self, student, teacher, student_example, teacher_example):
        if not self.knows(student):  # another teacher's shapes are no reason to forget what the peer has learnt
            self.of = (student,)
            self.peer = fresh_copy(student, student_example.logits.shape[1], self.peer_name)

    def knows(self, student):
        """Whether the peer has begun to learn beside this student."""
        return bool(self.of) and self.of[0] is student

    def prepare(self, student, teacher, data, recipe, lesson):
        self.precision = recipe.precision
        self.peer.to(memory_format=torch.channels_last if recipe.channels_last else torch.contiguous_format)
        yield from ()

    def mutual(self, mine, other, peer_learns):
        """{name: weighted term} of the learner with Output `mine`; peer_learns: whether that is the peer."""
        return {"mutual": self.weight * softened_divergence(mine.logits, other.logits.detach(), 1.0)}

    def loss(self, student, teacher, batch):
        if not self.looked or self.looked[0] is not batch:  # of several teachers, at the first
            # the peer's own step learns from this pass if both update simultaneously
            with torch.set_grad_enabled(self.update == "simultaneous"):
                self.looked = batch, student, run_networks(self.peer, batch.images, self.precision)
        return self.mutual(student, self.looked[2], peer_learns=False)

    def amend(self, phase, student, teacher):
        def loss(batch):
            _, other, mine = self.looked
            self.looked = ()
            if self.update == "alternating":
                mine = run_networks(self.peer, batch.images, self.precision)
                with torch.no_grad():
                    other = run_networks(student, batch.images, self.precision)
            terms = {f"peer {name}": value for name, value in self.mutual(mine, other, peer_learns=True).items()}
            return terms | {"peer labels": F.cross_entropy(mine.logits, batch.labels)}

        phase.learners.append(Learner([self.peer, *self.peer_trained()], loss))

    def peer_trained(self):
        """The submodules that learn beside the peer."""
        return []

    def measure(self, student, teacher, data):
        return {f"peer_{split}": evaluate(self.peer, data, split, self.precision) for split in ("validation", "test")}
