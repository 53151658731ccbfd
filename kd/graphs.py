"""A training step as one CUDA graph: a small network's step is thousands of short kernels, and the host is slower in asking
for them than the GPU in running them.

    KD_GRAPHS=1 dvc repro          on a GPU; without it every kernel is asked for one by one

Off by default because it has not been run on a GPU yet: tests/test_cuda.py compares both ways there, for every method.
"""

import os

import torch

WARM_UP = 3  # steps before the recording: kernels are chosen, and the optimizer's buffers come to be


def wanted(device):
    """Whether steps on `device` are to be recorded: KD_GRAPHS=1, on a GPU."""
    return device.type == "cuda" and os.environ.get("KD_GRAPHS") == "1"


def record(step, groups):
    """Record what `step` asks of the GPU, without doing it. Returns a function that does it and gives the tensors of `step`.

    groups: the parameter groups of the optimizers that the step uses.
    """
    for group in groups:
        group["capturable"] = True  # Adam refuses to be recorded without
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a loader may pin memory in another
        found = step()
    for group in groups:
        group["capturable"] = False  # and complains of it in a step that is not recorded

    def replay():
        graph.replay()
        return found

    return replay


class Recorded:
    """`step(images, labels)` -> {name: tensor}, done as it stands at first, then recorded, and from then on replayed.

    A replay works on the memory of the recording: what differs from step to step must lie in tensors that are written to, as
    the two buffers here are, and the learning rate in kd/distill.py. A batch of another size than the first one's, an
    epoch's last, is done as it stands.
    """

    def __init__(self, step, groups):
        self.step, self.groups, self.shape, self.count, self.replay = step, groups, None, 0, None

    def __call__(self, images, labels):
        self.shape, self.count = self.shape or images.shape, self.count + 1
        if images.shape != self.shape or self.count <= WARM_UP:
            return self.step(images, labels)
        if self.replay is None:
            self.images, self.labels = images.clone(), labels.clone()
            self.replay = record(lambda: self.step(self.images, self.labels), self.groups)
        self.images.copy_(images)
        self.labels.copy_(labels)
        return self.replay()
