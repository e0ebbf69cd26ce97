"""``python -m benchmarks.ansatz``: the neural feature ansatz on networks.

*training*: networks in the shapes of AlexNet, VGG, ResNet and MobileNet are trained on
CIFAR-10 and Fashion-MNIST; correlation of filter covariance and patch AGOP at
checkpoints, at the end beside weights drawn anew. Networks and measurements go to a
folder one by one, and are not made twice. *reasons*: variants of the training, decay,
optimiser, length and depthwise filters. *known*: networks that others trained.
"""

import copy
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import nn

from skconvrfm import AnsatzScorer
from skconvrfm.ansatz.baselines import estimate_statistics

from . import networks
from .harness import RESULTS, OwnMemory, Results, format_table, program, timed
from .problems import FILES, WHOLE, in_unit_range, read

BATCH, MARGIN = 100, 3  # images of a step, and pixels by which they are shifted at most
CHECKPOINTS = (0, 0.02, 0.05, 0.1, 0.25, 0.5, 1)  # shares of the training
N_MEASURED = 100  # test images; the standard errors are then some thousandths
POWERS = (1.0, 0.5)
# File, images of the training, and how often each is seen.
SETS = {
    "CIFAR-10": (WHOLE["CIFAR-10"], 20_000, 10),
    "Fashion-MNIST": (FILES["Fashion-MNIST"], 5000, 20),
}


def mobilenet(kernel_size=3):
    """Return what makes a MobileNet of depthwise filters of a size."""
    shape = {"width": 16, "strides": (1, 2, 1, 2, 1), "stem": 1}
    return lambda **data: networks.MobileNet(kernel_size=kernel_size, **shape, **data)


NETWORKS = {
    "AlexNet": lambda **data: networks.alexnet(width=16, dropout=0.1, **data),
    "VGG-11": lambda **data: networks.vgg11(width=16, **data),
    "VGG-11 with batch norm": lambda **data: networks.vgg11(
        width=16, batch_norm=True, **data
    ),
    "ResNet-18": lambda **data: networks.resnet18(width=8, **data),
    "MobileNet": mobilenet(),
}
# What makes the network, and options of its training.
VARIANTS = {
    **{
        f"{name}, {words}": (NETWORKS[name], {"decay": decay})
        for name in ("VGG-11", "VGG-11 with batch norm", "MobileNet")
        for words, decay in (("no decay", 0.0), ("decay 1e-2", 1e-2))
    },
    "VGG-11, gradient descent": (NETWORKS["VGG-11"], {"decay": 5e-4, "momentum": 0.9}),
    "VGG-11, 40 epochs": (NETWORKS["VGG-11"], {"epochs": 40}),
    "MobileNet, 5×5": (mobilenet(5), {}),
    "MobileNet, 7×7": (mobilenet(7), {}),
}


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


def train(network, X, y, epochs, seed, decay=1e-3, momentum=None):
    """Train on mirrored and shifted images with one cycle of the rate.

    Adam, or gradient descent with a ``momentum``. Yields the number of epochs done at
    `CHECKPOINTS`, with the network in evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters, rate = network.parameters(), 1e-3 if momentum is None else 0.05
    if momentum is None:
        optimizer = torch.optim.Adam(parameters, rate, weight_decay=decay)
    else:
        options = {"momentum": momentum, "nesterov": True, "weight_decay": decay}
        optimizer = torch.optim.SGD(parameters, rate, **options)
    n_batches = -(-len(X) // BATCH)
    n_steps = epochs * n_batches
    checkpoints = {round(share * n_steps) for share in CHECKPOINTS}
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=n_steps)
    yield 0.0
    network.train()
    for step in range(n_steps):
        if step % n_batches == 0:
            batches = torch.randperm(len(X), generator=generator).split(BATCH)
        rows = batches[step % n_batches]
        optimizer.zero_grad()
        outputs = network(augmented(X[rows], generator))
        nn.functional.cross_entropy(outputs, y[rows]).backward()
        optimizer.step()
        schedule.step()
        if step + 1 in checkpoints:
            network.eval()
            yield (step + 1) / n_batches
            network.train()
    network.eval()


def augmented(images, generator):
    """Return a batch that is shifted, and mirrored or not."""
    h, w = images.shape[2:]
    top, left, mirrored = torch.randint(2 * MARGIN + 1, (3,), generator=generator)
    images = nn.functional.pad(images, 4 * [MARGIN])[:, :, top : top + h]
    images = images[..., left : left + w]
    return images.flip(3) if mirrored % 2 else images


def measure_training(make, data, epochs, seed, **options):
    """Train a network; return accuracy and records at checkpoints, and the network."""
    X, y, X_test, y_test = data
    torch.manual_seed(seed)
    network = make(channels=X.shape[1], n_classes=int(y.max()) + 1).eval()
    checkpoints = []
    for epoch in train(network, X, y, epochs, seed, **options):
        state = copy.deepcopy(network)
        if not epoch:  # batch norm has the statistics of some images
            estimate_statistics(state, [X[:256]])
        with torch.no_grad():
            predicted = torch.cat(
                [state(batch).argmax(1) for batch in X_test.split(500)]
            )
        baseline = "reinitialised" if epoch == epochs else None
        scorer = AnsatzScorer(channels="first", agop_power=POWERS, baseline=baseline)
        records = scorer.report(state, X_test[:N_MEASURED].numpy()).records()
        accuracy = 100 * float((predicted == y_test).float().mean())
        point = {"epoch": epoch, "accuracy": accuracy, "records": records}
        checkpoints.append(point)
    return {"checkpoints": checkpoints}, network


def training(options, variants=None):
    """Train what is not there yet; return means by kind and power, rows of a table."""
    found = variants or {name: (make, {}) for name, make in NETWORKS.items()}
    results = Results(options.folder / "results.jsonl", ("set", "network", "seed"))
    data, rows = {}, []
    for name, kind, seed in product(
        options.sets, options.networks, range(options.draws)
    ):
        if kind not in found:
            continue
        file, n_train, epochs = SETS[name]
        make, chosen = found[kind]
        chosen = {"epochs": options.epochs or epochs, **chosen}

        def run(
            name=name, kind=kind, make=make, chosen=chosen, n_train=n_train, seed=seed
        ):
            if name not in data:
                sizes = options.sizes or [n_train]
                data[name] = load(options.data / SETS[name][0], sizes[0])
            row, network = measure_training(make, data[name], seed=seed, **chosen)
            path = options.folder / f"{name}-{kind}-{seed}.pt".replace(" ", "-")
            torch.save(network.state_dict(), path)
            return row

        options.folder.mkdir(parents=True, exist_ok=True)
        last = results.once((name, kind, seed), run)["checkpoints"][-1]
        rows += [
            [name, kind, str(seed), last["accuracy"], *means]
            for means in means_by_kind(last["records"])
        ]
    return ["set", "network", "seed", "accuracy", *STATISTICS], rows


STATISTICS = ("kind", "power", "correlation", "baseline", "lift")


def means_by_kind(records):
    """Return kind, power, and means of statistics over the layers."""
    keys = dict.fromkeys((one["kind"], one["agop_power"]) for one in records)
    return [
        [*key]
        + [
            float(np.mean([r[name] for r in records if _key(r) == key]))
            for name in STATISTICS[2:]
        ]
        for key in keys
    ]


def _key(record):
    return record["kind"], record["agop_power"]


def reasons(options):
    """Train variants of the networks; return the same rows."""
    return training(options, VARIANTS)


def known(options):
    """Return means by kind of trained networks, with seconds and memory."""
    with np.load(options.data / "cifar10_lossless_400_164.npz") as archive:
        small = in_unit_range(archive["X_train"])
    with np.load(options.data / "imagenet_sample_40.npz") as archive:
        large = archive["X"].astype(np.float32)
    cases = {
        "ResNet-20": (networks.resnet20(), "weights_cifar10_resnet20.npz", small),
        "SqueezeNet": (
            networks.SqueezeNet(),
            "squeezenet_v1.0_imagenet_compressed.npz",
            large,
        ),
    }
    rows, [n_images] = [], options.sizes[:1] or [40]
    for name, (network, file, images) in cases.items():
        networks.load_npz(network, options.data / file).eval()
        scorer = AnsatzScorer(baseline="reinitialised", agop_power=POWERS)
        with OwnMemory() as memory:
            times, layers = timed(scorer.report, network, images[:n_images])
        cost = times["seconds"], memory.peak
        rows += [[name, *means, *cost] for means in means_by_kind(layers.records())]
    return ["network", *STATISTICS, "s", "own, MiB"], rows


PARTS = {"training": training, "reasons": reasons, "known": known}


def measure(options):
    """Make the tables asked for."""
    results = {name: PARTS[name](options) for name in options.only}
    return [format_table(*found) for found in results.values()], {"ansatz": results}


main = program(
    measure,
    PARTS,
    sizes=[],
    draws=3,
    options={
        "--folder": {"type": Path, "default": RESULTS / "ansatz"},
        "--sets": {"nargs": "+", "choices": SETS, "default": list(SETS)},
        "--networks": {
            "nargs": "+",
            "choices": [*NETWORKS, *VARIANTS],
            "default": [*NETWORKS, *VARIANTS],
        },
        "--epochs": {"type": int, "help": "10 or 20 by default"},
    },
)

if __name__ == "__main__":
    raise SystemExit(main())
