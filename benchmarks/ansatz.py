"""``python -m benchmarks.ansatz``: the neural feature ansatz on networks.

Networks in the shapes of AlexNet, VGG, ResNet and MobileNet are trained on CIFAR-10 and
Fashion-MNIST; correlation of filter covariance and patch AGOP before and after, beside
weights drawn anew. What is measured goes to a file, and is not measured again.
"""

from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import nn

from skconvrfm import AnsatzScorer
from skconvrfm.ansatz.baselines import estimate_statistics

from . import networks
from .harness import RESULTS, Results, format_table, program
from .problems import FILES, WHOLE, in_unit_range, read

BATCH, MARGIN = 100, 3  # images of a step, and pixels by which they are shifted at most
POWERS = (1.0, 0.5)
KEY = "set", "network", "seed", "n_train", "epochs", "measured"
MEANS = "correlation", "baseline", "lift", "correlation_no_trace"
COLUMNS = "initial", *MEANS, "error"
# File, images of the training, and how often each is seen.
SETS = {
    "CIFAR-10": (WHOLE["CIFAR-10"], 20_000, 10),
    "Fashion-MNIST": (FILES["Fashion-MNIST"], 5000, 20),
}
NETWORKS = {
    "AlexNet": (networks.alexnet, {"width": 16, "dropout": 0.1}),
    "VGG-11": (networks.vgg11, {"width": 16}),
    "VGG-11 with batch norm": (networks.vgg11, {"width": 16, "batch_norm": True}),
    "ResNet-18": (networks.resnet18, {"width": 8}),
    "MobileNet": (
        networks.MobileNet,
        {"width": 16, "strides": (1, 2, 1, 2, 1), "stem": 1},
    ),
}


@lru_cache
def load(path, n_train):
    """Return images as tensors (n, c, h, w) of mean 0 and variance 1, and labels."""
    X, y, X_test, y_test = read(path, n_train, 2000)
    X, X_test = (
        torch.from_numpy(in_unit_range(x).reshape(*x.shape[:3], -1)).permute(0, 3, 1, 2)
        for x in (X, X_test)
    )
    mean, std = X.mean((0, 2, 3), keepdim=True), X.std((0, 2, 3), keepdim=True)
    y, y_test = (torch.from_numpy(labels.astype(np.int64)) for labels in (y, y_test))
    return (X - mean) / std, y, (X_test - mean) / std, y_test


def train(network, X, y, epochs, seed):
    """Train with Adam on mirrored and shifted images, with one cycle of the rate."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, weight_decay=1e-3)
    n_steps = epochs * -(-len(X) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=n_steps)
    network.to(memory_format=torch.channels_last).train()
    for _ in range(epochs):
        for rows in torch.randperm(len(X), generator=generator).split(BATCH):
            optimizer.zero_grad()
            outputs = network(augmented(X[rows], generator))
            nn.functional.cross_entropy(outputs, y[rows]).backward()
            optimizer.step()
            schedule.step()
    network.eval()


def augmented(images, generator):
    """Return a batch that is shifted, and mirrored or not."""
    h, w = images.shape[2:]
    top, left, mirrored = torch.randint(2 * MARGIN + 1, (3,), generator=generator)
    images = nn.functional.pad(images, 4 * [MARGIN])[:, :, top : top + h]
    images = images[..., left : left + w]
    images = images.flip(3) if mirrored % 2 else images
    return images.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def accuracy(network, X, y):
    """Return the per cent of images whose class has the largest output."""
    predicted = torch.cat([network(batch).argmax(1) for batch in X.split(500)])
    return 100 * float((predicted == y).float().mean())


def trained(options, name, kind, seed):
    """Return accuracy and layers of a network, which is trained if it is new."""
    file, n_train, epochs = SETS[name]
    [n_train] = options.sizes[:1] or [n_train]
    epochs = options.epochs or epochs
    X, y, X_test, y_test = load(options.data / file, n_train)

    def layers(network, **baseline):
        scorer = AnsatzScorer(channels="first", agop_power=POWERS, **baseline)
        return scorer.report(network, X_test[: options.measured].numpy()).records()

    def run():
        make, arguments = NETWORKS[kind]
        torch.manual_seed(seed)
        network = make(channels=X.shape[1], n_classes=int(y.max()) + 1, **arguments)
        drawn = {key: value.clone() for key, value in network.state_dict().items()}
        estimate_statistics(network.eval(), [X[:256]])  # of batch norm
        first = layers(network)
        network.load_state_dict(drawn)
        train(network, X, y, epochs, seed)
        last = layers(network, baseline="reinitialised")
        return {"accuracy": accuracy(network, X_test, y_test), "layers": [first, last]}

    key = name, kind, seed, n_train, epochs, options.measured
    return Results(options.results, KEY).once(key, run)


def measure(options):
    """Train what is not there yet; return means by kind and those of all layers."""
    summary, layers, results = [], [], {}
    for name, kind in product(options.sets, options.only):
        runs = [trained(options, name, kind, seed) for seed in range(options.draws)]
        results[f"{name}, {kind}"] = runs
        table = layer_table(runs)
        score = float(np.mean([run["accuracy"] for run in runs]))
        for group in dict.fromkeys(key[1:] for key in table):
            some = [row for key, row in table.items() if key[1:] == group]
            means = [float(np.mean([row[c] for row in some])) for c in COLUMNS[:-1]]
            above = sum(row["lift"] > 2 * row["error"] for row in some)
            below = sum(row["lift"] < -2 * row["error"] for row in some)
            summary.append([name, kind, score, *group, len(some), *means, above, below])
        layers += [[name, kind, *key, *row.values()] for key, row in table.items()]
    counts = ["lift > 2 se", "lift < -2 se"]
    kinds = ["accuracy", "kind", "power", "layers", *COLUMNS[:-1], *counts]
    tables = [
        format_table(["set", "network", *kinds], summary),
        format_table(["set", "network", "layer", "kind", "power", *COLUMNS], layers),
    ]
    return tables, {"ansatz": results}


def layer_table(runs):
    """Return `COLUMNS` by layer, kind and power: means over the seeds of a network.

    The error of a lift is over seeds, and over images and baselines of one of them.
    """
    table = {}
    for pairs in zip(*(zip(*run["layers"], strict=True) for run in runs), strict=True):
        first, last = zip(*pairs, strict=True)
        initial = np.mean([one["correlation"] for one in first])
        means = [np.mean([one[name] for one in last]) for name in MEANS]
        inner = np.mean([one["lift_standard_error"] for one in last])
        spread = np.std([one["lift"] for one in last], ddof=min(1, len(last) - 1))
        error = np.hypot(inner, spread) / np.sqrt(len(last))
        key = tuple(last[0][name] for name in ("name", "kind", "agop_power"))
        values = map(float, (initial, *means, error))
        table[key] = dict(zip(COLUMNS, values, strict=True))
    return table


main = program(
    measure,
    NETWORKS,
    sizes=[],
    draws=3,
    options={
        "--results": {"type": Path, "default": RESULTS / "ansatz.jsonl"},
        "--sets": {"nargs": "+", "choices": SETS, "default": list(SETS)},
        "--epochs": {"type": int, "help": "10 or 20 by default"},
        # The standard errors of 100 images are some thousandths.
        "--measured": {"type": int, "default": 100, "help": "test images"},
    },
)

if __name__ == "__main__":
    raise SystemExit(main())
