"""A frozen network without its batch norms, for the many forward passes of a teacher."""

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fuse_batchnorm(network, dtype=None):
    """A copy in which every norm right behind a convolution is part of that convolution's weights, in `dtype` if given.

    The same function as `network` in evaluation mode, up to rounding, with fewer passes over memory; features are
    what they were. Only neighbours in an nn.Sequential are joined, of torch's own classes exactly: what is between
    them is then known, and a supernet's widths stay apart. The network itself comes back, untouched, if it has no
    such pair, if it trains, or if one of its modules is watched by a hook (kd.Tapped), who would see another value.
    """
    def pairs(network):
        for parent in network.modules():
            if type(parent) is nn.Sequential:
                for place, (first, second) in enumerate(zip(parent, parent[1:], strict=False)):
                    if type(first) is nn.Conv2d and type(second) is nn.BatchNorm2d and second.track_running_stats:
                        yield parent, place

    inner = [module for module in network.modules() if module is not network]
    watched = any(module._forward_hooks or module._forward_pre_hooks for module in inner)
    if watched or any(module.training for module in network.modules()) or not any(True for _ in pairs(network)):
        return network
    network = copy.deepcopy(network)
    for parent, place in list(pairs(network)):
        parent[place] = fuse_conv_bn_eval(parent[place], parent[place + 1])
        parent[place + 1] = nn.Identity()
    # a fuse_batchnorm convolution's parameters are new ones: they must be as frozen as those they replace
    return network.requires_grad_(False).to(dtype=dtype)
