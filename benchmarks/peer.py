"""RepDistiller's own loops, networks, distillers, transforms, data set class and loader, for step.py and table.py to time."""

import argparse
import os
import pickle
import sys
import tempfile
from pathlib import Path

import torch

NAME, BATCH, CLASSES = "RepDistiller", 64, 100
WORKERS = min(8, os.cpu_count() or 1)  # its own 8, or one a core where there are fewer: more only made it slower
# Its loader starts its workers anew every epoch. An epoch of the real length hides that, a short one would not: so the
# clock starts when they are busy, behind this many batches, and stops while they still are.
FIRST = 2 * WORKERS + 1
# its own name for a row's distiller, and the weights of labels, divergence and distiller (scripts/run_cifar_distill.sh)
DISTILLERS = {
    "kd": ("kd", 0.1, 0.9, 0.0),
    "fitnet": ("hint", 1.0, 0.0, 100.0),
    "at": ("attention", 1.0, 0.0, 1000.0),
    "ft": ("factor", 1.0, 0.0, 200.0),
    "kd + at": ("attention", 0.1, 0.9, 1000.0),
}


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


def run(checkout, pair, steps, device, clock, answer, rows=("kd",)):
    """Its epochs, without end; answer(the seconds of `steps` steps of each row) is called again and again.

    pair: teacher, student. rows: trained one after another; one that it has no distiller for costs what its KD costs.
    """
    sys.path.insert(0, str(checkout))
    import torchvision.datasets.cifar as cifar
    from dataset import cifar100

    with tempfile.TemporaryDirectory() as folder:
        write_cifar100(Path(folder) / "cifar-100-python", BATCH * (FIRST + steps + FIRST))
        cifar.check_integrity = lambda *_: True  # it knows the md5 of the true files, and would download them
        cifar100.get_data_folder = lambda: folder
        own = [row if row in DISTILLERS or row == "labels" else "kd" for row in rows]
        train = {row: epochs_of(row, pair, device) for row in dict.fromkeys(own)}
        while True:
            seconds = {}
            for row, epoch in train.items():
                loader = cifar100.get_cifar100_dataloaders(BATCH, WORKERS, is_instance=row != "labels")[0]
                batches = TimedLoader(loader, steps, clock)
                epoch(batches)
                seconds[row] = batches.seconds
            answer(sum(seconds[row] for row in own))


def epochs_of(row, pair, device):
    """(batches) -> None, which trains an epoch of a row, its student freshly initialised; as its train_student.py does."""
    from distiller_zoo import Attention, DistillKL, FactorTransfer, HintLoss
    from helper import loops
    from models import model_dict
    from models.util import ConvReg, Paraphraser, Translator

    student, teacher = (model_dict[name](num_classes=CLASSES).to(device) for name in reversed(pair))
    labels, rate = torch.nn.CrossEntropyLoss(), {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}
    if row == "labels":
        optimizer, options = torch.optim.SGD(student.parameters(), **rate), argparse.Namespace(print_freq=100)
        return lambda batches: loops.train_vanilla(1, batches, student, labels, optimizer, options)
    distill, gamma, alpha, beta = DISTILLERS[row]
    with torch.no_grad():
        example = torch.randn(2, 3, 32, 32, device=device)
        mine, theirs = (network.eval()(example, is_feat=True)[0] for network in (student, teacher))
    learning, fixed, loss = [], [], DistillKL(4)
    if distill == "hint":
        learning, loss = [ConvReg(mine[2].shape, theirs[2].shape)], HintLoss()
    elif distill == "attention":
        loss = Attention()
    elif distill == "factor":
        learning, fixed = [Translator(mine[-2].shape, theirs[-2].shape)], [Paraphraser(theirs[-2].shape)]
        loss = FactorTransfer()
    modules = torch.nn.ModuleList([student, *learning, *fixed]).to(device)
    optimizer = torch.optim.SGD(torch.nn.ModuleList([student, *learning]).parameters(), **rate)
    modules.append(teacher)
    names = {"distill": distill, "gamma": gamma, "alpha": alpha, "beta": beta, "hint_layer": 2, "print_freq": 100}
    options = argparse.Namespace(**names)
    return lambda batches: loops.train_distill(1, batches, modules, [labels, DistillKL(4), loss], optimizer, options)
