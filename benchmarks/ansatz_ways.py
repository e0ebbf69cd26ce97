"""The ansatz measured in other ways: other outputs, filters and gradients."""

import copy

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from skconvrfm import AnsatzScorer


def weighted_logits(outputs, classes):
    """Outputs times their derivative of the loss, which is held."""
    wanted = nn.functional.one_hot(classes, outputs.shape[1])
    return outputs * (outputs.softmax(1) - wanted).detach()


# Functions of a network's outputs and of the labels.
OUTPUTS = {
    "logits": lambda outputs, _: outputs,
    "centred logits": lambda outputs, _: outputs - outputs.mean(1, keepdim=True),
    "probabilities": lambda outputs, _: outputs.softmax(1),
    "loss": lambda outputs, classes: nn.functional.cross_entropy(
        outputs, classes, reduction="none"
    )[:, None],
    "logits weighted by the loss": weighted_logits,
}


class Outputs(nn.Module):
    """A network whose outputs are a function of its own, and of the labels."""

    def __init__(self, network, function):
        super().__init__()
        self.network, self.function = network, function

    def forward(self, images, classes):
        return self.function(self.network(images), classes)


def folded(network):
    """Return a copy whose convolutions contain the batch norm that follows them."""
    network = copy.deepcopy(network).eval()
    for parent in network.modules():
        before = None
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.BatchNorm2d) and before is not None:
                fused = fuse_conv_bn_eval(getattr(parent, before), module)
                setattr(parent, before, fused)
                setattr(parent, name, nn.Identity())
            before = name if isinstance(module, nn.Conv2d) else None
    return network


class Change(nn.Module):
    """A convolution as the sum of what it was and what training has added."""

    def __init__(self, trained, initial):
        super().__init__()
        self.initial, self.change = initial, trained
        self.change.weight.data -= initial.weight.data
        self.initial.bias = None

    def forward(self, x):
        return self.change(x) + self.initial(x)


def with_changes(network, initial):
    """Return a copy whose convolutions are sums, with layers named ``*.change``."""
    network, initial = copy.deepcopy(network), copy.deepcopy(initial)
    drawn = dict(initial.named_modules())
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d):
            parent, _, child = name.rpartition(".")
            changed = Change(module, drawn[name])
            setattr(network.get_submodule(parent), child, changed)
    return network


def centred_correlations(network, images):
    """Return kind and correlation by layer, of gradients less their mean.

    The mean is over images and locations, for each output.
    """
    layers = AnsatzScorer().report(network, images)
    modules, seen, hooks = dict(network.named_modules()), {}, []
    for row in layers:

        def keep(_, __, output, name=row.name):
            seen[name] = output
            return output.clone()  # activations may work in place

        hooks.append(modules[row.name].register_forward_hook(keep))
    outputs = network(images)
    for hook in hooks:
        hook.remove()
    agops = {row.name: layers.matrices(row.name)[1].copy() for row in layers}
    for one in range(outputs.shape[1]):
        total = outputs[:, one].sum()
        gradients = torch.autograd.grad(total, list(seen.values()), retain_graph=True)
        for name, gradient in zip(seen, gradients, strict=True):
            sums = gradient.sum((0, 2, 3)).double()
            weight, groups = modules[name].weight.detach(), modules[name].groups
            filters = weight.double().reshape(groups, len(weight) // groups, -1)
            means = torch.einsum("gf,gfd->gd", sums.reshape(groups, -1), filters)
            n_locations = gradient.shape[2] * gradient.shape[3]
            part = torch.einsum("gd,ge->gde", means, means)
            agops[name] -= (part / len(images) ** 2 / n_locations).numpy()
    return {
        row.name: (row.kind, correlation(layers.matrices(row.name)[0], agops[row.name]))
        for row in layers
    }


def correlation(a, b):
    """Return the correlation of the entries of two arrays."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def measure_ways(network, initial, images, classes):
    """Return records of the layers by way, as those of a report."""

    def records(network, baseline, images=images):
        return AnsatzScorer(baseline=baseline).report(network, images).records()

    batches = [{"images": images, "classes": classes}]
    found = {
        way: records(*(Outputs(one, function) for one in (network, initial)), batches)
        for way, function in OUTPUTS.items()
    }
    found["batch norm folded"] = records(folded(network), folded(initial))
    changes = records(with_changes(network, initial), None)
    found["change of the filters"] = [
        one for one in changes if one["name"].endswith(".change")
    ]
    own, drawn = (centred_correlations(one, images) for one in (network, initial))
    found["centred gradients"] = [
        {"kind": kind, "agop_power": 1.0, "correlation": value, "baseline": other}
        | {"lift": value - other}
        for (kind, value), (_, other) in zip(own.values(), drawn.values(), strict=True)
    ]
    return found


def balance(network, X, y):
    """Return the mean over convolutions of the cosine of -∇loss and weight.

    It is 1 where the gradient and the decay of weights balance.
    """
    network.zero_grad()
    for images, classes in zip(X.split(500), y.split(500), strict=True):
        part = nn.functional.cross_entropy(network(images), classes)
        (part * len(images) / len(X)).backward()
    cosines = [
        nn.functional.cosine_similarity(
            -module.weight.grad.flatten(), module.weight.flatten(), dim=0
        )
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    ]
    return float(torch.stack(cosines).mean().detach())
