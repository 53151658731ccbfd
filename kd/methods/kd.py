"""KD: softened logits (Hinton, Vinyals, Dean 2015, arXiv 1503.02531).

    L = (1 - alpha) CE(z_s, y) + alpha T^2 KL( softmax(z_t / T) || softmax(z_s / T) )

The factor T^2 keeps the gradient's size when T changes: softening divides it by T twice.
"""

import torch.nn.functional as F

from kd.errors import ConfigError, NonNegative, Positive, checked
from kd.methods.base import Knowledge


def softened_divergence(student_logits, teacher_logits, temperature):
    """T^2 KL(teacher || student) of the softened distributions, mean over the batch.

    student_logits, teacher_logits: (N, classes). temperature: > 0. Returns a scalar >= 0, in nats times T^2;
    0 when both softened distributions agree.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


@checked("kd")
class KD(Knowledge):
    """temperature: T > 0. alpha: in [0, 1], the teacher's share. label_weight: >= 0, instead of 1 - alpha.

    With label_weight given, alpha may be any number >= 0:
    `KD(alpha=1, temperature=1, label_weight=1)` is RCO's H_S + lambda KL with lambda = 1.
    """

    def __init__(
        self,
        temperature: Positive = 4.0,  # RepDistiller scripts/run_cifar_distill.sh, the KD row
        alpha: NonNegative = 0.9,  # as above
        label_weight: NonNegative | None = None,  # 1 - alpha
    ):
        super().__init__()
        if alpha > 1 and label_weight is None:
            raise ConfigError(f"kd.alpha: {alpha} must lie between 0 and 1 (or give label_weight as well)")
        self.temperature, self.alpha = temperature, alpha
        self.label_weight = 1 - alpha if label_weight is None else label_weight

    def build(self, student, teacher, student_example, teacher_example):
        mine, theirs = student_example.logits.shape[1], teacher_example.logits.shape[1]
        if mine != theirs:
            counts = f"the teacher has {theirs} classes and the student {mine}"
            raise ConfigError(f"kd: {counts}; logits need the same classes in both")

    def loss(self, student, teacher, batch):
        return {"logits": self.alpha * softened_divergence(student.logits, teacher.logits, self.temperature)}
