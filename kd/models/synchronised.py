"""Batch norms that see a whole batch while its slices lie on several ranks (kd/ranks.py), on GPUs and on CPUs alike.

torch's own SyncBatchNorm runs on GPUs alone, and weighs ranks by what they hold, which a batch smaller than the number of ranks is not
to be weighed by.
"""

from contextlib import contextmanager

import torch
from torch import nn

from kd import ranks
from kd.errors import ConfigError


class Synchronised:
    """What takes the place of a batch norm's forward pass: mean and variance are those of the whole batch, and so are their gradients."""

    def forward(self, x):
        if not (self.training and ranks.IMAGES):
            return super().forward(x)
        self._check_input_dim(x)
        taken = ranks.part(ranks.IMAGES)
        count = x.numel() // x.shape[1] * ranks.IMAGES // (taken.stop - taken.start)
        if count == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got {tuple(x.shape)}")  # as torch has it
        with torch.autocast(x.device.type, enabled=False):
            values = x if x.dtype == torch.float64 else x.float()
            variance, mean = torch.var_mean(values, [0, *range(2, x.ndim)], correction=0)
            mine = torch.stack([mean, variance, torch.full_like(mean, ranks.share())])
            means, variances, shares = ranks.placed(mine[None], ranks.rank(), ranks.count()).unbind(1)
            mean = (shares * means).sum(0)
            variance = (shares * (variances + (means - mean) ** 2)).sum(0)
            self.remember(mean.detach(), variance.detach() * (count / (count - 1)))
            scale = (variance + self.eps).rsqrt()
            scale = scale if self.weight is None else scale * self.weight
            shift = -mean * scale if self.bias is None else self.bias - mean * scale
            shape = (-1, *[1] * (x.ndim - 2))
            return torch.addcmul(shift.view(shape), values, scale.view(shape)).to(x.dtype)

    @torch.no_grad()
    def remember(self, mean, variance):
        """Move the running statistics, as torch's batch norms do."""
        if not self.track_running_stats or self.running_mean is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running, new in ((self.running_mean, mean), (self.running_var, variance)):
            running.mul_(1 - momentum).add_(new, alpha=momentum)


KINDS = {kind: type(f"Synchronised{kind.__name__}", (Synchronised, kind), {}) for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)}


@contextmanager
def synchronised(*modules):
    """While the context lasts, the modules' batch norms in train mode see whole batches, where there are several ranks and they want it.

    ConfigError for a batch norm that is neither torch's own nor a SyncBatchNorm: how it computes is not known.
    """
    norms = [part for module in modules for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in dict.fromkeys(norms) if not isinstance(norm, nn.SyncBatchNorm)] if ranks.count() > 1 and ranks.NORMS else []
    for norm in norms:
        if type(norm) not in KINDS:
            remedy = "kd.join_ranks(sync_norms=False) leaves norms to each rank"
            raise ConfigError(f"{type(norm).__name__} is a batch norm of a kind that kd does not know how to synchronise; {remedy}")
    plain = [(norm, type(norm)) for norm in norms]
    try:
        for norm, kind in plain:
            norm.__class__ = KINDS[kind]  # only the class changes: weights, their names and whoever holds the module stay
        yield
    finally:
        for norm, kind in plain:
            norm.__class__ = kind
