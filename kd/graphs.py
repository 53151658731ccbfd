"""A training step as one CUDA graph: a small network's step is thousands of short kernels, and the host is slower in
asking for them than the GPU in running them.

    KD_GRAPHS=1 dvc repro          on a GPU; without it, or on several ranks, every kernel is asked for one by one

Off by default because it has not been run on a GPU yet: tests/test_cuda.py compares both ways there, for every method.
"""

import os

import torch

WARM_UP = 3  # steps before the recording: kernels are chosen, and the optimizer's buffers come to be


def wanted(device):
    """Whether steps on `device` are to be recorded: KD_GRAPHS=1, on a GPU."""
    return device.type == "cuda" and os.environ.get("KD_GRAPHS") == "1"


def record(step, groups):
    """Record what `step` asks of the GPU, without doing it. Returns a function that does it, and returns step's tensors.

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
    """`step(batch, learning rate)` -> {name: tensor}, done as it stands at first, then recorded, from then on replayed.

    A replay works on the memory of the recording: what differs from step to step must lie in tensors that are written
    to, as batch and learning rate do here. A batch of another size than the first one's, an epoch's last, is done as it
    stands.
    groups: the parameter groups of the optimizers that the step uses.
    """

    def __init__(self, step, groups):
        self.step, self.groups, self.shape, self.count, self.replay = step, groups, None, 0, None
        self.learning_rate = torch.zeros((), device=groups[0]["params"][0].device)

    def __call__(self, batch, learning_rate):
        self.learning_rate.fill_(learning_rate)
        self.shape, self.count = self.shape or batch.images.shape, self.count + 1
        if batch.images.shape != self.shape or self.count <= WARM_UP:
            return self.step(batch, self.learning_rate)
        if self.replay is None:
            self.batch = batch._make(tensor.clone() for tensor in batch)
            self.replay = record(lambda: self.step(self.batch, self.learning_rate), self.groups)
        for mine, given in zip(self.batch, batch, strict=True):
            mine.copy_(given)
        return self.replay()
