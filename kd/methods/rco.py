"""RCO: learn along the teacher's route (Jin et al., ICCV 2019, arXiv 1904.09149).

A curriculum. The teacher saved its weights along its own training, C_1 .. C_N, the last one converged. The student
learns from an early state first and goes on, with the weights it has, to later and harder ones (the anchors), until the
converged one:

    RCO("one-stage") * KD()          L = H_S + lambda KL(P_anchor || P_student), anchor by anchor

Strategies, with the names of the paper's Table 7:
    one-stage    EEI, equal epoch intervals: the whole route inside the student's normal epochs and its schedule.
                 Paper: an anchor every M_gap = 10 of 240 teacher epochs, so 24 anchors.
    multi-stage  EEI-n: n anchors, each with a full schedule of its own. Give n times the epochs (a row's `epochs: n`);
                 a lesson gets epochs / n.
    greedy       GS, Algorithm 2: after a lesson on anchor i, with H_j the divergence between the student and state j on
                 held-out images and r_j = (H_j - H_i) / H_i, walk j = i+1, i+2, .. and stop at the first r_j > delta;
                 the next anchor is j - 1, the last state that is still easy enough, or N if no r_j is too large.

Readings and deviations, all of them:
 * The algorithm is taken as printed: `while j < N` never tests the last state. As printed it also returns i when state
   i+1 is already too hard, and would stand still; then we go on to i+1.
 * H is the mean over images of KL(teacher || student) at temperature 1, in nats; `direction` and `temperature` change
   that. The paper says only "KL-type". r does not depend on H's scale. The images are the validation split's: train
   images that neither network learns from.
 * The first anchor of the greedy search is not public: `first` is a fixed early state (default: the first one saved),
   or "search": the same search with the untrained student, as if it came from state 1.
 * Every anchor of multi-stage and greedy has the learning rate's schedule anew, which fits the paper's total epochs.
 * With the greedy search the number of lessons is not known beforehand. A lesson has epochs / `lessons` epochs.
   within_budget=True, ours: at most `lessons` lessons, the last one, on the converged teacher, takes all that is left,
   so that the total is `epochs`. within_budget=False, the paper's: lessons of that length until the converged teacher
   has been learnt from, however many that takes; the record counts them.
 * delta 0.8, the 10,000 images and the form of L are known from a blog on the paper only. States are saved epochs
   apart, never a few steps; short lessons at a low learning rate for every anchor, which that blog mentions, are not
   offered.
 * When the rate falls along the route decides how many of its states are noisy ones of the high rate. The teacher's
   milestones are not public: in a figure of the paper's curves jump at about 60 and 120 of 240 epochs and flatten at
   180. Ours are the recipe's (RepDistiller's 150, 180 and 210); teacher.milestones in params.yaml changes them.
 * lambda and the loss's temperature are not public. They are KD's: `KD(alpha=1, temperature=1, label_weight=1)` is the
   formula above to the letter; tables use it where they say so, else KD's own defaults for KD and RCO alike.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Interval

from kd.errors import ConfigError, NonNegativeInt, Positive, PositiveInt, Worded, checked
from kd.methods.base import Curriculum, Lesson, freeze, split_epochs, state_at, state_at_epoch, teacher_epochs
from kd.models.base import EVALUATION_CHUNK

PAPER_ANCHORS = 24  # 240 teacher epochs / M_gap 10 (Table 7)
First = Annotated[
    NonNegativeInt | Annotated[float, Interval(gt=0, lt=1)] | Literal["search"],
    Worded("the number of a state from 0, a share between 0 and 1, or 'search'"),
]


def divergence(student_log, teacher_log, direction="teacher to student"):
    """H: mean KL over images, in nats, >= 0; 0 when both agree.

    student_log, teacher_log: (N, classes) log-probabilities. direction: "teacher to student" is
    sum_c p_t (log p_t - log p_s), "student to teacher" the other way round.
    """
    if direction == "student to teacher":
        student_log, teacher_log = teacher_log, student_log
    return F.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True)


def nearest_states(epochs, count):
    """For each of `count` equal intervals the number of the state saved nearest to its end, the earlier on a tie."""
    return [state_at_epoch(epochs, k * epochs[-1] / count) for k in range(1, count + 1)]


def equal_intervals(epochs, count):
    """The numbers (from 0) of `count` states at equal epoch intervals, ending at the last one.

    epochs: the epoch of each saved state, increasing. Each anchor is the state saved nearest to its epoch, the earlier
    on a tie. Raises ConfigError when the states are too few or lie too unevenly for `count` different anchors.
    """
    chosen = nearest_states(epochs, count)
    if len(set(chosen)) < count:
        raise ConfigError(
            f"rco.anchors: {count} equal intervals do not fall on different states of the {len(epochs)} saved; ask for "
            "fewer anchors, or save the route more often (teacher.every)"
        )
    return chosen


def greedy_anchor(H, current, states, delta):
    """Algorithm 2 as printed, with states numbered from 0: the last state after `current` that is still easy enough.

    H: state number -> divergence; called only for the states that the search looks at. delta: the relaxation factor,
    > 0. Returns `current` itself when the very next state is too hard. The last state is never tested.
    """
    j = current + 1
    while j < states - 1:
        # (H_j - H_i) / H_i > delta, written without the division, for H_i may be 0
        if H(j) - H(current) > delta * H(current):
            return j - 1
        j += 1
    return states - 1


@checked("rco")
class RCO(Curriculum):
    """Lessons along the teacher's route.

    strategy: "one-stage" (default: the paper's at equal epochs), "multi-stage" or "greedy".
    anchors: how many, for one-stage and multi-stage. None: 24, the paper's, or as many as states and epochs allow if
        fewer; multi-stage: 4, the paper's best of 2, 3, 4.
    delta: greedy's relaxation factor, > 0; 0.8 is the paper's for MobileNetV2.
    first: greedy's first anchor: a whole number is the state's (0 is the first saved one, the default), a fraction a
        share of the teacher's epochs, "search" looks for it with the untrained student.
    lessons: greedy's lessons are epochs / lessons long; 3, as the paper's 720 epochs are 3 x 240.
    within_budget: greedy never trains longer than `epochs` (True), or until it is done (False, the paper's).
    temperature: > 0, of the divergence H. direction: of H, "teacher to student" or "student to teacher".
    images: held-out images for H at most, drawn once; 10,000 as for the paper's Figure 3.
    trace: keep, in the record of every lesson, H of the student against every state of the route (Figure 3).
        Without a validation split there is nothing to keep, and the greedy search raises ConfigError.

    Every lesson's info has teacher_epoch, after the lesson `divergence`, a list with H of each state (None: not looked
    at), and with greedy `next_by_search`, the teacher epoch of the anchor that the search found (within_budget may take
    another).
    """

    def __init__(
        self,
        strategy: Literal["one-stage", "multi-stage", "greedy"] = "one-stage",
        anchors: PositiveInt | None = None,
        delta: Positive = 0.8,
        first: First = 0,
        lessons: PositiveInt = 3,
        within_budget: bool = True,
        temperature: Positive = 1.0,
        direction: Literal["teacher to student", "student to teacher"] = "teacher to student",
        images: PositiveInt = 10_000,
        trace: bool = True,
    ):
        self.strategy, self.anchors, self.delta, self.first = strategy, anchors, delta, first
        self.lessons, self.within_budget = lessons, within_budget
        self.temperature, self.direction, self.images, self.trace = temperature, direction, images, trace
        self.route, self.data, self.teacher_logs = None, None, {}

    def next(self, done, epochs, teachers, student, data):
        route = teachers["route"]
        if len(route) < 2:
            raise ConfigError("RCO needs a route of several states, and this is a single one; lower teacher.every, or train the teacher (no teacher.weights)")
        H, seen = self.prepare_for(route, data).measured(student, data)
        if done and self.trace and len(data.labels["validation"]):
            for state in range(len(route)):
                H(state)
        lesson = self.greedy(done, epochs, H) if self.strategy == "greedy" else self.interval(done, epochs)
        holder = done[-1] if done else lesson
        if seen:
            holder.info["divergence" if done else "divergence_untrained"] = [seen.get(i) for i in range(len(route))]
        return lesson

    def prepare_for(self, route, data):
        """Forget the log-probabilities of another route, or on other data."""
        if route is not self.route or data is not self.data:
            self.route, self.data, self.teacher_logs = route, data, {}
        return self

    def lesson(self, state, epochs, restart):
        epoch = teacher_epochs(self.route)[state]
        info = {"teacher_epoch": epoch}
        return Lesson("route", (state,), epochs, restart, name=f"anchor at teacher epoch {epoch}", info=info)

    def interval(self, done, epochs):
        """The lesson after `done` for equal epoch intervals."""
        states, count = teacher_epochs(self.route), self.anchors
        if count is None:
            most = min(PAPER_ANCHORS if self.strategy == "one-stage" else 4, len(states), epochs)
            # one state always fits
            count = next(n for n in range(most, 0, -1) if len(set(nearest_states(states, n))) == n)
        if count > len(states):
            have = f"{count} anchors, but the route has {len(states)} states"
            raise ConfigError(f"rco.anchors: {have}; ask for fewer, or lower teacher.every")
        plan = list(zip(equal_intervals(states, count), split_epochs(epochs, [1] * count, "rco.anchors"), strict=True))
        if len(done) == len(plan):
            return None
        return self.lesson(*plan[len(done)], restart=self.strategy == "multi-stage")

    def greedy(self, done, epochs, H):
        """The lesson after `done` for the greedy search."""
        last, length = len(self.route) - 1, epochs // self.lessons
        if length < 1:
            have = f"{epochs} epochs do not make {self.lessons} lessons"
            raise ConfigError(f"rco.lessons: {have}; raise epochs or lower rco.lessons")
        if done and done[-1].indices[0] == last:
            return None
        if done:
            current = done[-1].indices[0]
            state = max(current + 1, greedy_anchor(H, current, last + 1, self.delta))
            done[-1].info["next_by_search"] = teacher_epochs(self.route)[state]
        elif self.first == "search":
            state = greedy_anchor(H, 0, last + 1, self.delta)
        else:
            state = self.first if type(self.first) is int else state_at(self.route, self.first)
            if state > last:
                raise ConfigError(f"rco.first: state {state}, but the route's {last + 1} states are 0 to {last}")
        if self.within_budget and (state == last or len(done) == self.lessons - 1):
            state, length = last, epochs - sum(lesson.epochs for lesson in done)
        return self.lesson(state, length, restart=True)

    def measured(self, student, data):
        """(H, seen): H(state) is the student's divergence from a state of the route; seen remembers what was asked."""
        seen, mine = {}, None

        def H(state):
            nonlocal mine
            if state not in seen:
                if state not in self.teacher_logs:
                    device = next(student.parameters()).device
                    self.teacher_logs[state] = self.log_probabilities(freeze(self.route[state]).to(device), data)
                mine = self.log_probabilities(student, data) if mine is None else mine
                seen[state] = float(divergence(mine, self.teacher_logs[state], self.direction))
            return seen[state]

        return H, seen

    @torch.no_grad()
    def log_probabilities(self, network, data):
        """(N, classes) float64 of a network on the held-out images, in eval mode, on the CPU."""
        count = len(data.labels["validation"])
        if not count:
            raise ConfigError("the greedy search needs held-out images, and there are none; set data.validation")
        kept = torch.zeros(count, dtype=torch.bool)
        kept[torch.randperm(count, generator=torch.Generator().manual_seed(0))[: self.images]] = True
        was_training, parts = network.training, []
        network.eval()
        for batch in data.chunks("validation", EVALUATION_CHUNK):
            logits = network(batch.images[kept.to(batch.index.device)[batch.index]]).logits
            parts.append(F.log_softmax(logits.double().cpu() / self.temperature, dim=1))
        network.train(was_training)
        return torch.cat(parts)
