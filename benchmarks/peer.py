"""RepDistiller's train_distill with its own networks, transforms, data set class and loader, for step.py to time."""

import argparse
import os
import pickle
import sys
import tempfile
from pathlib import Path

import torch

BATCH, CLASSES = 64, 100
WORKERS = min(8, os.cpu_count() or 1)  # its own 8, or one a core where there are fewer: more only made it slower
# Its loader starts its workers anew every epoch. An epoch of the real length hides that, a short one would not: so the
# clock starts when they are busy, behind this many batches, and stops while they still are.
FIRST = 2 * WORKERS + 1


class TimedLoader:
    """A loader's batches; `seconds` is what the `steps` steps after the FIRST ones took."""

    def __init__(self, loader, steps, clock):
        self.loader, self.steps, self.clock = loader, steps, clock

    def __len__(self):
        return self.steps

    def __iter__(self):
        for place, batch in enumerate(self.loader):
            if place == FIRST:
                began = self.clock()
            if place == FIRST + self.steps:
                self.seconds = self.clock() - began
                return
            yield batch


def write_cifar100(folder, count):
    """Random images in the files of CIFAR-100's Python archive, `count` of them for training."""
    folder.mkdir()
    for split, size in {"train": count, "test": BATCH}.items():
        pixels, labels = torch.randint(0, 256, (size, 3 * 32 * 32)).byte(), torch.randint(0, CLASSES, (size,))
        (folder / split).write_bytes(pickle.dumps({"data": pixels.numpy(), "fine_labels": labels.tolist()}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": list(map(str, range(CLASSES)))}))


def run(checkout, pair, steps, device, clock, answer):
    """Its epochs, without end; answer(the seconds of `steps` steps) is called after each. pair: teacher, student."""
    sys.path.insert(0, str(checkout))
    import torchvision.datasets.cifar as cifar
    from dataset import cifar100
    from distiller_zoo import DistillKL
    from helper.loops import train_distill
    from models import model_dict

    student, teacher = (model_dict[name](num_classes=CLASSES).to(device) for name in reversed(pair))
    criteria = [torch.nn.CrossEntropyLoss(), DistillKL(4), DistillKL(4)]
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    options = argparse.Namespace(distill="kd", gamma=0.1, alpha=0.9, beta=0.0, print_freq=100)
    with tempfile.TemporaryDirectory() as folder:
        write_cifar100(Path(folder) / "cifar-100-python", BATCH * (FIRST + steps + FIRST))
        cifar.check_integrity = lambda *_: True  # it knows the md5 of the true files, and would download them
        cifar100.get_data_folder = lambda: folder
        loader = cifar100.get_cifar100_dataloaders(BATCH, WORKERS, is_instance=True)[0]
        while True:
            batches = TimedLoader(loader, steps, clock)
            train_distill(1, batches, [student, teacher], criteria, optimizer, options)
            answer(batches.seconds)
