"""Baselines: the network with weights drawn anew, and statistics of batch norm."""

import copy

import torch
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from ..compute.warn import warn_caller
from .network import run_network

# Images on which running statistics are estimated.
STATISTICS_IMAGES = 256


def reinitialised(network, seeds):
    """Return copies of a network whose modules have drawn their parameters anew."""
    kept, copies = _not_drawn(network), []
    if len(kept) == sum(1 for _ in network.parameters()):
        raise ValueError(
            f"baseline='reinitialised' finds no reset_parameters in the modules of "
            f"{type(network).__name__}: pass an untrained network as baseline."
        )
    if kept:
        more = f" and {len(kept) - 3} more" if len(kept) > 3 else ""
        warn_caller(
            f"baseline='reinitialised' keeps {', '.join(kept[:3])}{more}, which no "
            "module draws anew by reset_parameters: pass an untrained network as "
            "baseline."
        )
    for seed in seeds:
        torch.manual_seed(seed)
        copies.append(copy.deepcopy(network))
        with torch.no_grad():
            for module in copies[-1].modules():
                _draw(module)
    return copies


def _not_drawn(network):
    """Return the names of the parameters that `reinitialised` keeps."""
    drawn = set()
    for module in network.modules():
        if not _resets(module):
            continue
        drawn |= {id(p) for p in module.parameters(recurse=False)}
        if parametrize.is_parametrized(module):
            drawn |= {id(p) for p in module.parametrizations.parameters()}
        if hasattr(module, "_reset_parameters"):  # of all that it contains
            drawn |= {id(p) for p in module.parameters()}
    return [name for name, p in network.named_parameters() if id(p) not in drawn]


def _resets(module):
    """Return the method by which a module draws its parameters, or None."""
    public = getattr(module, "reset_parameters", None)
    return public or getattr(module, "_reset_parameters", None)


def _draw(module):
    """Let a module draw its parameters."""
    if not parametrize.is_parametrized(module):
        reset = _resets(module)
        return reset and reset()
    # What is drawn is the weight that the module uses, not its parametrisation. torch's
    # own way to remove one would take it from all modules that share the class.
    plain, names = copy.deepcopy(module), list(module.parametrizations)
    plain.__class__ = type(module).__bases__[0]
    del plain.parametrizations
    for name in names:
        plain.register_parameter(name, torch.nn.Parameter(getattr(module, name)))
    _resets(plain)()
    for name, value in plain.named_parameters(recurse=False):
        if name in names:
            setattr(module, name, value.detach())
        else:
            getattr(module, name).copy_(value)


def estimate_statistics(network, batches):
    """Set the running statistics of a network to those of some batches."""
    norms = [
        module
        for module in network.modules()
        if isinstance(module, _NormBase) and module.running_mean is not None
    ]
    if not norms:
        return
    for module in norms:
        module.reset_running_stats()
        module.momentum, module.training = None, True  # the mean over all batches
    with torch.no_grad():
        for batch in batches:
            run_network(network, batch, [], None)
    for module in norms:
        module.training = False
