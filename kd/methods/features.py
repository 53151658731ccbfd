"""Which feature maps of teacher and student are compared, and how maps of different sizes meet."""

from typing import Annotated, Literal

import torch.nn.functional as F
from annotated_types import MinLen

from kd.errors import ConfigError, Worded, several

Stages = Annotated[several(int), MinLen(1)]
Taps = Annotated[
    Literal["last", "middle", "all"] | Stages, Worded("'last', 'middle', 'all', or a list of stage numbers")
]


def features_at(taps, teacher_features, student_features):
    """Pairs (teacher map, student map) at "last", "middle", "all", or a list of stage numbers.

    "middle" is stage (n - 1) // 2 of each network's own n stages, "last" its own last. "all" needs as many stages in
    both, and numbers must exist in both; else ConfigError.
    """
    if not teacher_features or not student_features:
        who = "student" if teacher_features else "teacher"
        raise ConfigError(f"the {who} gives no feature maps; name layers to take them from: kd.Tapped(network, layers)")
    if taps == "last":
        return [(teacher_features[-1], student_features[-1])]
    if taps == "middle":
        return [tuple(features[(len(features) - 1) // 2] for features in (teacher_features, student_features))]
    if taps != "all":
        return matched(teacher_features, student_features, taps)
    if len(teacher_features) != len(student_features):
        stages = f"{len(teacher_features)} and {len(student_features)}"
        raise ConfigError(f"taps: teacher and student have {stages} stages; give numbers, such as taps: [0, -1]")
    return list(zip(teacher_features, student_features, strict=True))


def check_head(student, name):
    """ConfigError unless the student has a `.head`: in a linear probe nothing else learns."""
    if not hasattr(student, "head"):
        kind = type(student).__name__
        raise ConfigError(f"{name}: {kind} has no .head to train; give it one, or wrap it in kd.Tapped")


def same_size(first, second):
    """Both maps (N, C, H, W), average-pooled to the smaller height and the smaller width of the two."""
    size = tuple(min(a, b) for a, b in zip(first.shape[2:], second.shape[2:], strict=True))
    return tuple(m if m.shape[2:] == size else F.adaptive_avg_pool2d(m, size) for m in (first, second))


def matched(teacher_features, student_features, taps):
    """Pairs (teacher map, student map) at the given stage numbers; a tap that does not exist raises ConfigError."""
    pairs = []
    for tap in taps:
        for who, features in (("teacher", teacher_features), ("student", student_features)):
            if not -len(features) <= tap < len(features):
                count = len(features)
                raise ConfigError(f"tap {tap}: the {who} has {count} stages; choose from 0 to {count - 1}")
        pairs.append((teacher_features[tap], student_features[tap]))
    return pairs
