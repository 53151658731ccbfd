"""One run on several ranks: processes that torchrun or KD_RANKS started, each with a GPU or CPU cores of its own.

    device = kd.join_ranks()           in mine.py, before anything is put on a device
    torchrun --nproc-per-node 8 mine.py

Every rank holds whole networks and takes its slice of the very batches that one process would see. Gradients are added, weighted by
the slices' sizes, and batch norms are synchronised (kd/models/synchronised.py), so that all ranks hold the same weights, and results
are those of one process within rounding. Rank 0 reports, and writes what is written; every rank reads; evaluation is split.

What a method's loss must be for that: a mean over images, or computed from `whole`. torch's DistributedDataParallel is not used: it
wraps one network with one forward pass a step, and a step here may be several networks' and several passes.

In one process every function here gives back what it is given, so that nothing changes there.
"""

import os
from contextlib import contextmanager
from hashlib import md5

import torch
from torch import distributed

from kd.errors import ConfigError

NORMS = True  # whether batch norms are synchronised
IMAGES = 0  # in the batch under way, on all ranks together; 0: none is, or there is one process


def join_ranks(sync_norms: bool = True, device: str | None = None, init_method: str = "env://") -> torch.device:
    """Make this process one of the ranks that torchrun started, and return the device it is to use.

    sync_norms: batch norms see whole batches. False: each its rank's slice, which saves waiting; results then differ with the number of
    ranks, and running statistics are rank 0's, as in torch's DistributedDataParallel. device: "cuda" or "cpu"; None: GPUs where torch
    sees one. init_method: where the ranks meet, as for torch.distributed.init_process_group, which may also have been called before.
    Without torchrun this process is all there is. ConfigError where there are more ranks on this machine than GPUs.
    """
    global NORMS
    NORMS, local = sync_norms, int(os.environ.get("LOCAL_RANK", 0))
    cuda = torch.cuda.is_available() if device is None else device == "cuda"
    if cuda:
        if local >= torch.cuda.device_count():
            have = f"rank {local} of this machine has no GPU of its own, there are {torch.cuda.device_count()}"
            raise ConfigError(f"{have}; start as many ranks as GPUs")
        torch.cuda.set_device(local)
    if "WORLD_SIZE" in os.environ and not distributed.is_initialized():
        rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        distributed.init_process_group("nccl" if cuda else "gloo", init_method, rank=rank, world_size=ranks)
    return torch.device("cuda", local) if cuda else torch.device("cpu")


def count():
    """How many ranks share this run; 1 in a process of its own."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank():
    """This process's number, from 0."""
    return distributed.get_rank() if count() > 1 else 0


def is_first():
    """Whether this process is the one that reports and writes."""
    return rank() == 0


def check_joined():
    """ConfigError in a process of torchrun's that has not joined the others: each would train the whole run."""
    started = int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    if started > 1 and count() == 1:
        raise ConfigError(f"torchrun started {started} processes, and this one has not joined the others; call kd.join_ranks() first")


# --- a batch and its slices


def part(images):
    """Which of a batch of so many images this rank takes, a slice. Where there are fewer than ranks, every rank takes all of them, for
    no network runs on none; rank 0's alone count then."""
    size, rest = divmod(images, count())
    if not size:
        return slice(0, images)
    begin = rank() * size + min(rank(), rest)
    return slice(begin, begin + size + (rank() < rest))


@contextmanager
def batch_of(images):
    """While the context lasts, this rank's slice of a batch of so many images is under way."""
    global IMAGES
    IMAGES = images if count() > 1 else 0
    try:
        yield
    finally:
        IMAGES = 0


def counted(images):
    """How many of the images that this rank looks at it answers for: those of a batch that every rank takes whole are rank 0's."""
    return 0 if IMAGES and count() > IMAGES and not is_first() else images


def share():
    """The share of the batch under way that this rank answers for, in [0, 1]; all ranks' add up to 1."""
    taken = part(IMAGES)
    return counted(taken.stop - taken.start) / IMAGES


def weighted(loss):
    """A slice's loss, a mean over its images, as its part of the whole batch's loss: these add up over ranks, and so do their gradients."""
    return loss * share() if IMAGES else loss


def add_gradients(optimizer):
    """Give every rank the sum over ranks of the gradients, in one transfer. A weight without a gradient must have none on any rank."""
    if not IMAGES:
        return
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    for gradient, added_up in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(added_up.view(gradient.shape))


class Added(torch.autograd.Function):
    """The sum over ranks; the gradient of the sum over ranks of their losses."""

    @staticmethod
    def forward(ctx, values):
        values = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx, gradient):
        return Added.apply(gradient)


def placed(values, begin, length):
    """Every rank's rows at their places: (n, ...), the first to be row `begin`, to (length, ...); differentiable."""
    before, after = (values.new_zeros(rows, *values.shape[1:]) for rows in (begin, length - begin - len(values)))
    return Added.apply(torch.cat([before, values, after]))


def whole(values):
    """(n, ...), a row for each image of this rank's slice, to (N, ...) with those of the whole batch, in its order; differentiable.

    For a loss that is no mean over images, such as a root of a mean or a similarity of Gram matrices.
    """
    return values if count() > IMAGES else placed(values, part(IMAGES).start, IMAGES)


# --- what lies on the host


def everyones(value):
    """What each rank gives, a list in the order of the ranks; [value] in one process. Every rank must call."""
    if count() == 1:
        return [value]
    found = [None] * count()
    distributed.all_gather_object(found, value)
    return found


def agreed(value):
    """Rank 0's value: a decision by clock or by the last bit of a sum must be the same everywhere. Every rank must call."""
    return everyones(value)[0]


def wait():
    """Wait until every rank has come here."""
    everyones(None)


def total(value):
    """The sum over ranks of a number or tensor, the same bits everywhere; a tensor's lies on the CPU. Every rank must call."""
    if count() == 1:
        return value
    return sum(everyones(value.cpu() if isinstance(value, torch.Tensor) else value))


def check_alike(**named):
    """ConfigError, on every rank, naming what is not the same on all ranks: values, or modules, whose weights are compared."""
    if count() == 1:
        return
    found = everyones({name: fingerprint(value) for name, value in named.items()})
    for name in named:
        other = [number for number, values in enumerate(found) if values[name] != found[0][name]]
        if other:
            remedy = "every rank must run the same program on the same files, and call torch.manual_seed before it builds a network"
            raise ConfigError(f"rank {other[0]} has another {name.replace('_', ' ')} than rank 0; {remedy}")


def fingerprint(value):
    """A text that tells whether two values, or two modules' weights, are the same."""
    if not isinstance(value, torch.nn.Module):
        return repr(value)
    digest = md5(usedforsecurity=False)
    for name, tensor in value.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def first_ones_buffers(*modules):
    """Give the modules' buffers rank 0's values: where batch norms are not synchronised, each rank's have seen other images."""
    if count() > 1 and not NORMS:
        for module in modules:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)


@contextmanager
def own_random_numbers(device, *key):
    """While the context lasts, torch's generators give ranks other than 0 numbers of their own, a function of rank and `key`.

    So dropout draws anew for every slice. Rank 0's are those of one process; the masks of a batch cannot be, so that networks with
    dropout learn alike on several ranks in distribution only.
    """
    if is_first():
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(md5(repr((rank(), *key)).encode()).digest()[:7], "little"))
        yield
