"""``python -m benchmarks.ansatz_reasons``: where the ansatz fails, reasons tested.

Takes the networks that ``python -m benchmarks.ansatz`` has trained on CIFAR-10, and
measures them in other ways: by probabilities, by the loss, with batch norm folded into
the filters, by the change of the filters, with centred gradients. Then trains variants
of them: other weight decay, gradient descent, larger depthwise filters. The baseline of
each is the network as it was drawn, measured in the same way.
"""

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from skconvrfm import AnsatzScorer

from . import ansatz, networks
from .harness import add_data_option, check_data_option, format_table, report
from .known_networks import mean_of_kind

SET = "CIFAR-10"
PARTS = ("measuring", "training")


# ---------------------------------------------------------- other ways to measure


class Outputs(nn.Module):
    """A network whose outputs are a function of its own, and of the labels."""

    def __init__(self, network, function):
        super().__init__()
        self.network, self.function = network, function

    def forward(self, images, classes):
        return self.function(self.network(images), classes)


def logits(outputs, _):
    """Outputs as they are."""
    return outputs


def centred_logits(outputs, _):
    """Outputs less their mean, which probabilities do not see."""
    return outputs - outputs.mean(1, keepdim=True)


def probabilities(outputs, _):
    """Probabilities of the classes."""
    return outputs.softmax(1)


def loss(outputs, classes):
    """Cross-entropy of each image."""
    return nn.functional.cross_entropy(outputs, classes, reduction="none")[:, None]


def weighted_logits(outputs, classes):
    """Outputs times their derivative of the loss, which is held."""
    wanted = nn.functional.one_hot(classes, outputs.shape[1])
    return outputs * (outputs.softmax(1) - wanted).detach()


OUTPUTS = {
    "logits": logits,
    "centred logits": centred_logits,
    "probabilities": probabilities,
    "loss": loss,
    "logits weighted by the loss": weighted_logits,
}


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
    modules = dict(network.named_modules())
    seen, hooks = {}, []
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
    found = {}
    for row in layers:
        pair = layers.matrices(row.name)[0].ravel(), agops[row.name].ravel()
        found[row.name] = row.kind, float(np.corrcoef(*pair)[0, 1])
    return found


def measure_ways(network, initial, data):
    """Return table rows: the way, and the means by kind and power."""
    X, _, X_test, y_test = data
    initial = ansatz.with_statistics(initial, X)
    images, classes = (part[: ansatz.N_MEASURED] for part in (X_test, y_test))
    batches = [{"images": images, "classes": classes}]
    found = {}
    for way, function in OUTPUTS.items():
        pair = (Outputs(one, function) for one in (network, initial))
        found[way] = _report(*pair, batches)
    found["batch norm folded"] = _report(folded(network), folded(initial), images)
    changes = _report(with_changes(network, initial), None, images)
    found["change of the filters"] = [r for r in changes if r.name.endswith(".change")]
    rows = [[way, *row] for way, layers in found.items() for row in _means(layers)]
    pair = centred_correlations(network, images), centred_correlations(initial, images)
    kinds = {name: kind for name, (kind, _) in pair[0].items()}
    for kind in dict.fromkeys(kinds.values()):
        own, baseline = (
            float(np.mean([found[name][1] for name in kinds if kinds[name] == kind]))
            for found in pair
        )
        rows.append(["centred gradients", kind, 1.0, own, baseline, own - baseline])
    return rows


def _report(network, baseline, batches):
    scorer = AnsatzScorer(agop_power=ansatz.POWERS, baseline=baseline)
    return scorer.report(network, batches)


def _means(layers):
    """Return kind, power, correlation, baseline and lift by kind and power."""
    rows = []
    for kind in dict.fromkeys(row.kind for row in layers):
        for index, power in enumerate(ansatz.POWERS):
            own = mean_of_kind(layers, kind, index, "correlation")
            baseline = mean_of_kind(layers, kind, index, "baseline")
            rows.append([kind, power, own, baseline, own - baseline])
    return rows


# ------------------------------------------------------------------------ variants


def depthwise(kernel_size):
    """Return what makes a MobileNet with larger depthwise filters."""
    return lambda **data: networks.MobileNet(
        width=16, strides=(1, 2, 1, 2, 1), stem=1, kernel_size=kernel_size, **data
    )


def known(name):
    """Return what makes a network of the other benchmark."""
    return ansatz.NETWORKS[name]


# What makes the network, and options of its training.
VARIANTS = {
    "VGG-11, no decay": (known("VGG-11"), {"decay": 0.0}),
    "VGG-11, decay 1e-2": (known("VGG-11"), {"decay": 1e-2}),
    "VGG-11, gradient descent": (known("VGG-11"), {"decay": 5e-4, "momentum": 0.9}),
    "VGG-11, 40 epochs": (known("VGG-11"), {"epochs": 40}),
    "VGG-11 with batch norm, no decay": (
        known("VGG-11 with batch norm"),
        {"decay": 0.0},
    ),
    "VGG-11 with batch norm, decay 1e-2": (
        known("VGG-11 with batch norm"),
        {"decay": 1e-2},
    ),
    "MobileNet, no decay": (known("MobileNet"), {"decay": 0.0}),
    "MobileNet, decay 1e-2": (known("MobileNet"), {"decay": 1e-2}),
    "MobileNet, 5×5": (depthwise(5), {}),
    "MobileNet, 7×7": (depthwise(7), {}),
}


def stationarity(network, X, y):
    """Return the mean over convolutions of the cosine of -∇loss and weight.

    It is 1 where the gradient and the decay of weights balance.
    """
    network.zero_grad()
    for images, classes in zip(X.split(500), y.split(500), strict=True):
        part = nn.functional.cross_entropy(network(images), classes)
        (part * len(images) / len(X)).backward()
    weights = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d)]
    cosines = [
        nn.functional.cosine_similarity(-w.grad.flatten(), w.flatten(), dim=0)
        for w in weights
    ]
    return float(torch.stack(cosines).mean().detach())


def measure_variant(name, data, epochs):
    """Train a variant; return its accuracy, stationarity and means by kind."""
    make, options = VARIANTS[name]
    network = ansatz.new_network(make, data, 0)
    initial = copy.deepcopy(network)
    for _ in ansatz.train(network, *data[:2], **{"epochs": epochs, **options}):
        pass
    return measured(network, initial, data)


def measured(network, initial, data):
    """Return accuracy, stationarity and means by kind of a trained network."""
    X, y, X_test, y_test = data
    baseline = ansatz.with_statistics(initial, X)
    layers = ansatz.measure(network, X_test, baseline=baseline)
    accuracy = 100 * ansatz.accuracy(network, X_test, y_test)
    head = accuracy, stationarity(network, X[:5000], y[:5000])
    return [[*head, *row] for row in _means(layers)]


def load(name, folder, data):
    """Return a network that the other benchmark has trained, and as it was drawn."""
    path = folder / ansatz.file_name({"set": SET, "network": name, "seed": 0})
    if not path.exists():
        raise SystemExit(f"{path} is missing: run `python -m benchmarks.ansatz` first.")
    pair = []
    for state in torch.load(path, weights_only=True):
        pair.append(ansatz.new_network(ansatz.NETWORKS[name], data, 0))
        pair[-1].load_state_dict(state)
    return pair


def measure_all(options, data, epochs, results):
    """Measure what is not there yet, line by line."""
    done = {row["name"] for row in ansatz.read(results)}
    names = options.networks if "measuring" in options.parts else []
    names = names + (options.variants if "training" in options.parts else [])
    for name in names:
        if name in done:
            continue
        if name in VARIANTS:
            row = {"variant": measure_variant(name, data, epochs)}
        else:
            pair = load(name, options.folder, data)
            row = {
                "ways": measure_ways(*pair, data),
                "variant": measured(*pair, data),
            }
        with results.open("a") as lines:
            lines.write(json.dumps({"name": name, **row}) + "\n")


STATISTICS = ("kind", "power", "correlation", "as drawn", "lift")


def main(argv=None):
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ansatz_reasons",
        description=__doc__.splitlines()[0],
    )
    add_data_option(parser)
    add = parser.add_argument
    add("--folder", type=Path, default=ansatz.FOLDER, help="of `benchmarks.ansatz`")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    known_names = list(ansatz.NETWORKS)
    add("--networks", nargs="+", choices=known_names, default=known_names)
    add("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    add("--n-train", type=int, metavar="N", help="default: 20,000")
    add("--epochs", type=int, metavar="N", help="default: 10")
    add("--json", metavar="FILE", help="write the results there")
    options = parser.parse_args(argv)
    check_data_option(parser, options)
    file, n_train, epochs = ansatz.SETS[SET]
    data = ansatz.load_data(options.data / file, options.n_train or n_train)
    results = options.folder / "reasons.jsonl"
    measure_all(options, data, options.epochs or epochs, results)
    rows = ansatz.read(results)
    ways = [[row["name"], *one] for row in rows for one in row.get("ways", [])]
    variants = [[row["name"], *one] for row in rows for one in row["variant"]]
    texts = [
        format_table(["network", "measured by", *STATISTICS], ways),
        format_table(["network", "accuracy", "stationarity", *STATISTICS], variants),
    ]
    report(texts, {"reasons": rows}, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
