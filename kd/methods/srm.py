"""SRM: sparse representation matching (Tran, Gabbouj, Iosifidis 2021, arXiv 2103.17012).

A sparse block writes the D channels at each position (h, w) of a feature map x with few of K codewords. With a codebook
C (D, K) and one intercept b, both learnt:

    s = sigmoid(C^T x(h,w) + b)          K similarities, each in (0, 1)
    s^ = s where s is among the k largest of its position, else 0
    x^(h,w) = C s^                       the same codewords rebuild the features
    K = int(mu D),  k = max(1, int(D lambda mu)),  D: the teacher's channels

Three stages. 1: the teacher's codebooks learn sum_l mean (x_l - x^_l)^2 while the teacher stays as it is. 2: the
student and codebooks of its own, with as many codewords, learn from labels that need no label of the data,

    pixel labels   sum_l CE( s_student(h,w), argmax_k s_teacher(h,w) )     mean over images and positions
    image labels   sum_l BCE( mean_hw s_student, mean_hw s^_teacher )      mean over images and codewords

Only the teacher's side is sparse. 3: the student forgets its codebooks and learns as usual, `SRM() + KD()` as the
authors do; `SRM()` alone fine-tunes on the labels, `SRM(probe=True)` learns the head alone.

Source: viebboy/SRM cifar100/code: Layers.py (blocks), DenseNet.py (K and k), Utility.py (losses, stages),
exp_configurations.py. Losses are in nats, or in squared units of the features (stage 1).

As in that code, each with a parameter that turns it off:
  - sigmoid_logits: the pixel loss takes similarities in (0, 1) for logits, so it cannot fall below ln((e + K - 1) / e).
  - exact_atoms: entries that tie with the k-th largest are kept too, so a position may keep more than k.
  - fresh_optimizer: Adam starts afresh at each fall of the learning rate in stages 1 and 2.
  - freeze_statistics: batch norm's running statistics move while only the head learns.
Unlike it, each with a parameter that does as the code:
  - drift: stage 1 of the code runs the teacher in train mode, which moves its batch norm statistics; the labels then
    come from that drifted teacher, stage 3's logits from the original. Here the teacher stays as it is.
  - selection: a stage of the code goes on with the best of the states at the ends of its three learning-rate segments:
    by training loss (stage 1), validation loss (2) and validation accuracy (3). Here it goes on with its last state.
Unlike it:
  - Batches are as large as the lesson's (the code: 512, 384 and 128 for stages 1, 2 and 3).
  - A lesson has one optimizer; the code makes a new one at each fall of the learning rate in stage 3 too.
  - Maps of different sizes are averaged down to the smaller size; in the code sizes always agree.
  - Lengths are shares of the lessons' epochs: the code's 100, 160 and 200 epochs make the defaults 0.5 and 0.8.
"""

import math
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from kd import ranks
from kd.errors import ConfigError, NonNegative, Positive, Share, checked
from kd.methods.base import Knowledge, Learner, Phase
from kd.methods.features import Taps, check_head, features_at, same_size
from kd.models import run_networks
from kd.models.synchronised import synchronised

FALLS_CODEBOOKS = (10 / 100, 70 / 100)  # where the learning rate falls tenfold: after 10 and 70 of 100 epochs,
FALLS_STUDENT = (30 / 160, 130 / 160)  # and after 30 and 130 of 160


def scores(features, codebook, intercept):
    """C^T x + b at each position. features: (N, D, H, W); codebook: (D, K); intercept: (1,). Returns (N, K, H, W)."""
    return F.linear(features.movedim(1, -1), codebook.T, intercept.expand(codebook.shape[1])).movedim(-1, 1)


def sparse(similarity, atoms, exact=False):
    """Keep the `atoms` largest of the K similarities at each position, zero elsewhere. similarity: (N, K, H, W).

    Entries equal to the smallest kept one are kept as well, unless `exact`. The choice itself carries no gradient.
    """
    if exact:
        largest = similarity.topk(atoms, dim=1)
        return torch.zeros_like(similarity).scatter(1, largest.indices, largest.values)
    found = similarity.detach()
    smallest_kept = found.amax(1, keepdim=True) if atoms == 1 else found.topk(atoms, dim=1).values[:, -1:]
    return similarity * (found >= smallest_kept)


def rebuilt(code, codebook):
    """x^ = C s^ at each position. code: (N, K, H, W); codebook: (D, K). Returns (N, D, H, W)."""
    return F.linear(code.movedim(1, -1), codebook).movedim(-1, 1)


def pixel_loss(student, teacher_similarity):
    """Cross-entropy with the teacher's strongest codeword as the class of each position.

    student: (N, K, H, W), taken for logits; teacher_similarity: (N, K, H, W). A scalar in nats, mean over positions, >=
    0, and >= `pixel_floor(K)` when `student` holds similarities in (0, 1).
    """
    return F.cross_entropy(student, teacher_similarity.argmax(1))


def pixel_floor(codewords):
    """ln((e + K - 1) / e): the pixel loss of similarities that are 1 at the right codeword and 0 elsewhere."""
    return math.log((math.e + codewords - 1) / math.e)


def image_loss(student_similarity, teacher_code):
    """Binary cross-entropy between the means over positions. Both (N, K, H, W) with entries in [0, 1].

    A scalar in nats, mean over images and codewords; smallest where the means agree, and then their entropy.
    """
    return F.binary_cross_entropy(student_similarity.mean((2, 3)), teacher_code.mean((2, 3)))


class Codebook(nn.Module):
    """K codewords for D channels. Initialised as in the code: Kaiming uniform over (D, K), intercept in (-1, 1)."""

    def __init__(self, channels, codewords):
        super().__init__()
        self.codewords = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(channels, codewords)))
        self.intercept = nn.Parameter(torch.empty(1).uniform_(-1, 1))

    def scores(self, features):
        return scores(features, self.codewords, self.intercept)

    def forward(self, features):
        """Similarities in (0, 1): (N, D, H, W) -> (N, K, H, W)."""
        return torch.sigmoid(self.scores(features))


class HeldStatistics(nn.Module):
    """Puts a network's batch norms in eval mode whenever it is told to train: their running statistics stay."""

    def __init__(self, network):
        super().__init__()
        self.norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]  # no submodules

    def train(self, mode=True):
        for norm in self.norms:
            norm.eval()
        return super().train(mode)


@checked("srm")
class SRM(Knowledge):
    """Two preparing stages before the first lesson; see the module's docstring.

    taps: "all", "middle", "last" or stage numbers. warm_up: student epochs of stage 2, and codebook_epochs:
    epochs of stage 1, both as shares of the lessons' epochs. within_budget: stage 2 is taken out of the student's
    epochs instead of coming on top. every_lesson: stages 1 and 2 come before every lesson of a curriculum, not the
    first alone; codebooks go on from where they stood.
    """

    def __init__(
        self,
        codewords: Positive = 2.0,  # mu: codewords a teacher channel; grid 1.5, 2, 3; the probe's
        sparsity: Share = 0.02,  # lambda: share of the codewords kept at a position; grid 0.01, 0.02, 0.03
        target: Literal["both", "pixel", "image"] = "both",  # the labels of stage 2
        taps: Taps = (0, 1, -1),  # the three stages that the CIFAR-100 code taps
        pooled: bool = False,  # also tap the last stage's mean over positions, as the transfer and ImageNet code does
        warm_up: NonNegative = 0.8,  # stage 2: share of the lessons' epochs; 160 of 200
        codebook_epochs: NonNegative = 0.5,  # stage 1: share of the lessons' epochs; 100 of 200
        within_budget: bool = False,  # True: stage 2 is part of the student's epochs
        every_lesson: bool = False,  # True: stages 1 and 2 before every lesson, not the first alone
        optimizer: Literal["adam", "sgd"] = "adam",  # of stages 1 and 2
        learning_rate: Positive = 1e-3,  # of stages 1 and 2; falls tenfold twice
        codebook_weight_decay: NonNegative = 0.0,  # stage 1
        weight_decay: NonNegative = 1e-4,  # stage 2, on the student and its codebooks
        fresh_optimizer: bool = True,  # the code makes a new Adam at each fall of the learning rate
        sigmoid_logits: bool = True,  # False: the pixel loss takes C^T f + b
        drift: bool = False,  # True: labels from a teacher whose batch norm statistics stage 1 has moved
        selection: bool = False,  # True: a stage, or a lesson, continues from its best state
        exact_atoms: bool = False,  # True: exactly k codewords a position, ties or not
        probe: bool = False,  # True: the lessons train the student's head alone
        freeze_statistics: bool = False,  # with probe: True holds the student's batch norm statistics too
    ):
        super().__init__()
        if freeze_statistics and not probe:
            raise ConfigError("srm.freeze_statistics: for when the head alone learns; it needs probe: true")
        if drift and every_lesson:
            raise ConfigError("srm.drift: only the first lesson's teacher drifts; choose it or every_lesson")
        if within_budget and every_lesson:
            raise ConfigError("srm.within_budget: how often every_lesson warms up is not known; choose one of the two")
        self.mu, self.sparsity, self.target, self.taps, self.pooled = codewords, sparsity, target, taps, pooled
        self.share, self.codebook_share, self.within_budget = warm_up, codebook_epochs, within_budget
        self.every_lesson, self.fresh_optimizer, self.sigmoid_logits = every_lesson, fresh_optimizer, sigmoid_logits
        self.drift, self.exact_atoms, self.probe, self.hold = drift, exact_atoms, probe, freeze_statistics
        self.selection = selection
        self.common = {
            "optimizer": optimizer,
            "learning_rate": learning_rate,
            "cycles": 1,
            "gamma": 0.1,
            "schedule": "step",
        }
        self.decays = codebook_weight_decay, weight_decay
        self.teacher_codebooks, self.student_codebooks = nn.ModuleList(), nn.ModuleList()
        self.names, self.atoms, self.statistics, self.held = [], [], nn.Module(), []

    def size(self, channels):
        """(K, k) for a teacher's map of D channels: ConfigError when K is less than two."""
        codewords, atoms = int(channels * self.mu), max(1, int(channels * (self.sparsity * self.mu)))
        if codewords < 2:
            raise ConfigError(f"srm.codewords: {self.mu} times {channels} channels are {codewords} codewords; raise it")
        return codewords, min(atoms, codewords)

    def build(self, student, teacher, student_example, teacher_example):
        pairs = self.maps(teacher_example, student_example)
        sizes = [self.size(theirs.shape[1]) for theirs, _ in pairs]
        self.atoms = [atoms for _, atoms in sizes]
        taps = [self.taps] if isinstance(self.taps, str) else self.taps
        taps = range(len(pairs) - self.pooled) if self.taps == "all" else taps
        self.names = [str(tap) for tap in taps] + ["pooled"] * self.pooled
        books = [
            (Codebook(t.shape[1], k), Codebook(s.shape[1], k)) for (t, s), (k, _) in zip(pairs, sizes, strict=True)
        ]
        self.teacher_codebooks, self.student_codebooks = map(nn.ModuleList, zip(*books, strict=True))
        if self.drift:
            self.statistics = nn.Module()  # part of the state that is saved; a dot is not allowed in a buffer's name
            for name, buffer in teacher.named_buffers():
                self.statistics.register_buffer(name.replace(".", ":"), buffer.clone())
        if self.probe:
            check_head(student, "srm.probe")
        self.held = [HeldStatistics(student)] if self.hold else []

    def maps(self, teacher, student):
        """[(teacher's map, student's map), ...] of the taps."""
        pairs = features_at(self.taps, teacher.features, student.features)
        if self.pooled:
            pairs.append(tuple(x.features[-1].mean((2, 3), keepdim=True) for x in (teacher, student)))
        return pairs

    def epochs(self, budget):
        """(of stage 1, of stage 2) when the recipe has `budget` epochs."""
        lessons = budget / (1 + self.share) if self.within_budget else budget
        student = budget - round(lessons) if self.within_budget else round(self.share * lessons)
        return round(self.codebook_share * lessons), student

    def warm_up(self, epochs):
        student = self.epochs(epochs)[1]
        return student, student if self.within_budget else 0

    def prepare(self, student, teacher, data, recipe, lesson):
        if self.selection and not len(data.labels["validation"]):
            raise ConfigError("srm.selection: there are no validation images to choose by; raise data.validation")
        if lesson and not self.every_lesson:
            return
        codebook_epochs, student_epochs = self.epochs(recipe.epochs)
        plan = recipe.replace(**self.common)

        def learn_codebooks(batch):
            with torch.no_grad():
                theirs = self.look(teacher, batch.images, recipe.precision, learning=True)
            return self.rebuilding_loss(theirs)

        def learn_student(batch):
            with torch.no_grad():
                theirs = self.look(teacher, batch.images, recipe.precision)
            return self.matching_loss(run_networks(student, batch.images, recipe.precision), theirs)

        def training_loss(entry):
            return sum(entry["loss"].values())

        def validation_loss(entry):
            return self.validation_loss(student, teacher, data, recipe)

        learner = Learner([self.teacher_codebooks], learn_codebooks)
        plan = plan.replace(weight_decay=self.decays[0])
        yield from self.segments("codebooks", learner, plan, codebook_epochs, FALLS_CODEBOOKS, False, training_loss)
        learner = Learner([student, self.student_codebooks], learn_student)
        plan = plan.replace(weight_decay=self.decays[1])
        yield from self.segments(
            "initialisation", learner, plan, student_epochs, FALLS_STUDENT, True, validation_loss
        )

    def segments(self, name, learner, plan, epochs, falls, student_epochs, select):
        """The phases of a stage: one, or one for each learning-rate segment, each with an optimizer of its own."""
        select = select if self.selection else None
        if not epochs:
            return
        first = max(1, round(epochs * falls[0]))
        second = max(first, round(epochs * falls[1]))
        plan = plan.replace(milestones=[first / epochs, second / epochs])
        for begin, end in pairwise([0, first, second, epochs]) if self.fresh_optimizer else [(0, epochs)]:
            if end > begin:
                span = (begin / epochs, end / epochs)
                segment = plan.replace(epochs=end - begin)
                yield Phase(name, [learner], segment, span, student_epochs, select, select_later=end < epochs)

    def look(self, teacher, images, precision, learning=False):
        """The teacher's Output, for stage 1 (`learning`) or for the labels."""
        if not self.drift:
            return run_networks(teacher, images, precision)
        statistics = {name.replace(":", "."): buffer for name, buffer in self.statistics.named_buffers()}
        teacher.train(learning)
        with synchronised(teacher):
            output = run_networks(partial(torch.func.functional_call, teacher, statistics), images, precision)
        teacher.eval()
        return output

    def rebuilding_loss(self, teacher):
        """Stage 1: {"rebuilding TAP": mean squared difference between the teacher's map and its sparse rebuilding}."""
        terms = {}
        taps = zip(self.names, self.teacher_codebooks, self.atoms, self.maps(teacher, teacher), strict=True)
        for name, book, atoms, (x, _) in taps:
            terms[f"rebuilding {name}"] = F.mse_loss(
                rebuilt(sparse(book(x), atoms, self.exact_atoms), book.codewords), x
            )
        return terms

    def matching_loss(self, student, teacher):
        """Stage 2: {"pixel TAP": nats, "image TAP": nats}, from both networks' Outputs."""
        terms = {}
        books = zip(self.teacher_codebooks, self.student_codebooks, self.atoms, strict=True)
        taps = zip(self.names, books, self.maps(teacher, student), strict=True)
        for name, (teacher_book, student_book, atoms), pair in taps:
            theirs, mine = same_size(*pair)
            with torch.no_grad():
                similarity = teacher_book(theirs)
            guess = student_book.scores(mine)
            chances = guess.sigmoid() if self.sigmoid_logits or self.target != "pixel" else None
            if self.target in ("both", "pixel"):
                terms[f"pixel {name}"] = pixel_loss(chances if self.sigmoid_logits else guess, similarity)
            if self.target in ("both", "image"):
                terms[f"image {name}"] = image_loss(chances, sparse(similarity, atoms, self.exact_atoms))
        return terms

    @torch.no_grad()
    def validation_loss(self, student, teacher, data, recipe):
        """Stage 2's loss, nats, of the student in eval mode; mean over the validation images, which ranks share."""
        student.eval()
        total = 0.0
        mine = {"first": ranks.rank(), "every": ranks.count()}
        for batch in data.chunks("validation", recipe.batch_size, **mine):  # more images' similarities may not fit
            theirs = self.look(teacher, batch.images, recipe.precision)
            output = run_networks(student, batch.images, recipe.precision)
            total += float(sum(self.matching_loss(output, theirs).values())) * len(batch.labels)
        return ranks.total(total) / len(data.labels["validation"])

    def score(self, entry):
        """How a lesson's states are compared, lower is better: minus the validation accuracy, in percent."""
        return -entry["validation"]

    def amend(self, phase, student, teacher):
        if self.selection:
            phase.select = self.score

    def trained(self):
        return self.held

    def student_parameters(self, student):
        return list(student.head.parameters()) if self.probe else list(student.parameters())

    def measure(self, student, teacher, data):
        """Codewords K and atoms k of each tap, after rounding and the floor of one atom."""
        return {"srm_codewords": [book.codewords.shape[1] for book in self.teacher_codebooks], "srm_atoms": self.atoms}
