"""Teachers: a converged network, the route it took (its weights along training), or nested sub-networks of growing
width.

A route and a supernet are each one safetensors file that every later stage shares; the file is part of a result, so its
md5 goes into every record.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from kd import checkpoints, ranks
from kd.checkpoints import Checkpoint
from kd.data import Data
from kd.errors import ConfigError
from kd.methods import Knowledge
from kd.methods.kd import softened_divergence
from kd.models import Supernet, Tapped, build, evaluate, run_networks
from kd.recipe import Recipe
from kd.training import Result, distill, train


class Route:
    """A teacher's saved states in the order of its training, the converged one last.

    route[i] is the network with the weights of state i (a network of its own, in eval mode); len(route) states.
    epochs: the epoch after which each state was saved; accuracy: [{"validation": %, "test": %}] of each.
    """

    def __init__(self, path, device="cpu", **expected):
        self.path = Path(path)
        self.about = checkpoints.about(path)
        state = checkpoints.load_state(path, device, kind="route", **expected)
        self.states, self.epochs, self.accuracy = state["states"], state["epochs"], state["accuracy"]
        self.network = build(self.about["network"], self.about["classes"], self.about["channels"]).to(device)

    def __len__(self):
        return len(self.states)

    def __iter__(self):
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index):
        if not -len(self) <= index < len(self):
            remedy = "save more with teacher.every or ask for fewer"
            raise ConfigError(f"state {index} of the route: {self.path} has {len(self)}; {remedy}")
        return checkpoints.load_weights(copy.deepcopy(self.network), self.states[index], self.path).eval()


class SubNetworks:
    """The sub-networks of a supernet, narrow to whole; widths[i] is a network of its own with width i active."""

    def __init__(self, path, device="cpu", **expected):
        self.path = Path(path)
        self.about = checkpoints.about(path)
        state = checkpoints.load_state(path, device, kind="supernet", **expected)
        plain = build(self.about["network"], self.about["classes"], self.about["channels"])
        self.widths, self.accuracy = self.about["widths"], state["accuracy"]
        self.network = checkpoints.load_weights(Supernet(plain, self.widths).to(device), state["weights"], path)

    def __len__(self):
        return len(self.widths)

    def __iter__(self):
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index):
        if not -len(self) <= index < len(self):
            raise ConfigError(f"width {index}: {self.path} has {len(self)} widths {self.widths}")
        network = copy.deepcopy(self.network)
        network.select(index % len(self))
        return network.eval()


def train_route(
    name: str,
    data: Data,
    recipe: Recipe,
    every: int,
    path: str | Path,
    seed: int = 0,
    resume: str | Path | None = None,
    report: Callable[[str], object] | None = None,
    after_epoch: Callable | None = None,
) -> Result:
    """Train the network called `name` on the labels and save its route: the weights after every `every` epochs and the
    converged ones.

    data: kd.data.Data on the device to train on. path: the safetensors file to write, whole or not at all.
    resume: folder for the states reached so far; a run stopped at any instant goes on from there to the same bits.
    report, after_epoch: as `distill` has them. Returns the kd.training.Result. Raises ConfigError when `every` does not lie in 1..epochs.
    """
    if not 1 <= every <= recipe.epochs:
        raise ConfigError(f"teacher.every: {every} must lie between 1 and the teacher's {recipe.epochs} epochs")
    checkpoints.check_writable(path)
    about = {"network": name, "classes": len(data.classes), "channels": data.image_shape[0], "data": data.md5}
    about |= {"recipe": recipe.as_dict(), "seed": seed}
    torch.manual_seed(seed)
    network = build(name, len(data.classes), data.image_shape[0]).to(data.labels["train"].device)
    wanted = [epoch for epoch in range(1, recipe.epochs + 1) if epoch % every == 0 or epoch == recipe.epochs]
    memory = {}

    def keep(result, network):
        epoch, last = len(result.curve), result.last
        if epoch in wanted:
            state = {"weights": {k: v.clone() for k, v in network.state_dict().items()}, "test": last["test"]}
            state["validation"] = last["validation"]
            if resume:
                checkpoints.save_state(Path(resume) / f"epoch-{epoch}.safetensors", state, **about)
            else:
                memory[epoch] = state
        if after_epoch:
            after_epoch(result, network)

    checkpoint = Checkpoint(Path(resume) / "running.safetensors", **about) if resume else None
    result = train(network, data, recipe, seed, checkpoint=checkpoint, report=report, after_epoch=keep)
    if ranks.is_first():
        save_route(path, wanted, memory, resume, result, about)
    ranks.wait()  # whoever returns may read the file
    return result


def save_route(path, wanted, memory, resume, result, about):
    """Write a route's file: the states after the epochs `wanted`, from memory or from the files in `resume`."""
    if resume:
        memory = {e: checkpoints.load_state(Path(resume) / f"epoch-{e}.safetensors", **about) for e in wanted}
    saved = [memory[epoch] for epoch in wanted]
    state = {
        "states": [s["weights"] for s in saved],
        "epochs": wanted,
        "accuracy": [{"validation": s["validation"], "test": s["test"]} for s in saved],
        "curve": result.curve,
    }
    checkpoints.save_state(path, state, kind="route", **about)


def adopt_route(
    name: str,
    data: Data,
    recipe: Recipe,
    path: str | Path,
    start: str | Path,
    resume: str | Path | None = None,
    report: Callable[[str], object] | None = None,
    after_epoch: Callable | None = None,
) -> list[dict[str, float]]:
    """Save a route of one state, the converged one, whose weights somebody else has trained, such as torchvision's.

    start: a file of the state_dict, with the plain keys of the network inside: .safetensors, or what torch.save wrote (.pth), of which
    tensors alone are read. recipe: its precision, in which the state is evaluated. resume, report,
    after_epoch: as `train_route` has them, unused.
    Returns [{"validation": %, "test": %}]. ConfigError for a file that is missing or of another network or number of classes.
    """
    checkpoints.check_writable(path)
    network = build(name, len(data.classes), data.image_shape[0])
    plain = network.module if isinstance(network, Tapped) else network
    weights, head = weights_of(start), [key for key, module in plain.named_modules() if isinstance(module, nn.Linear)][-1]
    classes = len(weights.get(f"{head}.weight", data.classes))
    if classes != len(data.classes):
        has = f"{start} is of a network for {classes} classes, and the data have {len(data.classes)}"
        raise ConfigError(f"{has}; give weights for these, or train the teacher (leave it out of teacher.weights)")
    checkpoints.load_weights(plain, weights, start)
    network.to(data.labels["train"].device)
    accuracy = {split: evaluate(network, data, split, recipe.precision) for split in ("validation", "test")}
    about = {"network": name, "classes": len(data.classes), "channels": data.image_shape[0], "data": data.md5}
    about |= {"recipe": recipe.as_dict(), "start": checkpoints.file_md5(start)}
    state = {"states": [network.state_dict()], "epochs": [1], "accuracy": [accuracy], "curve": []}
    checkpoints.save_state(path, state, kind="route", **about)
    return [accuracy]


def weights_of(path):
    """{name: tensor} of a file of weights, .safetensors or torch.save's. ConfigError if it is missing or none."""
    try:
        weights = load_file(path) if Path(path).suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; correct teacher.weights, or leave the network out of it and it is trained") from None
    except Exception as error:  # of a damaged file torch raises RuntimeError, UnpicklingError, EOFError and more
        reason = (" ".join(str(error).split()) or type(error).__name__)[:100]
        raise ConfigError(f"{path} is no file of weights ({reason}); give a state_dict as .pth or .safetensors") from None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ConfigError(f"{path} holds no state_dict, {{name: tensor}}; save network.state_dict() alone")
    return weights


def joint_loss(network, distil_in_place=False, temperature=1.0, precision="fp32"):
    """The loss of nested widths trained jointly: the sum over widths of the cross-entropy with the labels.

    With `distil_in_place` the narrower widths learn from the whole network's softened outputs instead (slimmable
    networks' in-place distillation). How PWKD trains its teacher is not public beyond "jointly": our reading, after
    JiahuiYu/slimmable_networks train.py. Returns a function (kd.data.Batch) -> {"width W": scalar tensor, nats}.
    """

    def loss(batch):
        terms, whole = {}, None
        for index in reversed(range(len(network.widths))):
            network.select(index)
            logits = run_networks(network, batch.images, precision).logits
            if whole is not None and distil_in_place:
                value = softened_divergence(logits, whole, temperature)
            else:
                value = F.cross_entropy(logits, batch.labels)
            whole = logits.detach() if whole is None else whole
            terms[f"width {network.widths[index]:g}"] = value
        return terms

    return loss


class JointTraining(Knowledge):
    """The labels, for all widths of a Supernet in place of its whole; see `joint_loss`."""

    needs_teacher = False

    def __init__(self, distil_in_place=False):
        super().__init__()
        self.distil_in_place = distil_in_place

    def amend(self, phase, student, teacher):
        phase.name, phase.student_epochs = "supernet", False  # the accuracy of the whole alone says little on the way
        phase.learners[0].loss = joint_loss(student, self.distil_in_place, precision=phase.recipe.precision)


def train_supernet(
    name: str,
    data: Data,
    recipe: Recipe,
    widths: Sequence[float],
    path: str | Path,
    seed: int = 0,
    distil_in_place: bool = False,
    resume: str | Path | None = None,
    report: Callable[[str], object] | None = None,
    start: str | Path | None = None,
    after_epoch: Callable | None = None,
) -> list[dict[str, float]]:
    """Train nested widths of the network called `name` jointly, and save them as one file.

    widths: increasing shares of the channels, the last one 1.0. start: the file of a route of that network on these
    data, whose converged state is where all widths begin; None: fresh weights. The other arguments are those of
    `train_route`. Returns the accuracy of each width, [{"validation": %, "test": %}].
    """
    about = {"network": name, "classes": len(data.classes), "channels": data.image_shape[0], "data": data.md5}
    checkpoints.check_writable(path)
    about |= {"widths": list(widths), "recipe": recipe.as_dict(), "seed": seed, "distil_in_place": distil_in_place}
    about["start"] = checkpoints.file_md5(start) if start else None  # another teacher gives another supernet
    torch.manual_seed(seed)
    if start:
        plain = Route(start, network=name, data=data.md5)[-1]
    else:
        plain = build(name, len(data.classes), data.image_shape[0])
    network = Supernet(plain, widths).to(data.labels["train"].device)
    checkpoint = Checkpoint(Path(resume) / "running.safetensors", **about) if resume else None
    method = JointTraining(distil_in_place)
    result = distill(network, method, None, data, recipe, seed, checkpoint=checkpoint, report=report, after_epoch=after_epoch)
    accuracy = []
    for index in range(len(network.widths)):
        network.select(index)
        accuracy.append({split: evaluate(network, data, split, recipe.precision) for split in ("validation", "test")})
    curve = [{"epoch": entry["epoch"], "loss": entry["loss"]} for entry in result.curve]
    state = {"weights": network.state_dict(), "accuracy": accuracy, "curve": curve}
    if ranks.is_first():
        checkpoints.save_state(path, state, kind="supernet", **about)
    ranks.wait()
    return accuracy
