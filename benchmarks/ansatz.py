"""``python -m benchmarks.ansatz``: the ansatz before and after training.

Trains small networks in the shapes of AlexNet, VGG and ResNet, measures the
correlation of filter covariance and patch AGOP layer by layer before and after, and
draws it. Then measures time and memory on a ResNet-18 of full size with 1000 outputs,
each case in a process of its own.
"""

import argparse
import json
import sys

import numpy as np
import torch
from torch import nn

from skconvrfm import AnsatzScorer

from . import networks
from .harness import (
    MEBIBYTE,
    format_table,
    in_subprocess,
    peak_memory,
    report,
    smooth_images,
    timed,
)

NETWORKS = {
    "AlexNet": lambda **data: networks.alexnet(width=16, **data),
    "VGG-11": lambda **data: networks.vgg11(width=12, **data),
    "VGG-11 with batch norm": lambda **data: networks.vgg11(
        width=12, batch_norm=True, **data
    ),
    "ResNet-18": lambda **data: networks.resnet18(width=8, **data),
    "ResNet, bottlenecks": lambda **data: networks.ResNet(
        networks.Bottleneck, (2, 2, 2, 2), width=8, **data
    ),
}
BATCH = 100
LEARNING_RATE = 3e-3
# Without it the filters keep what they were drawn as.
WEIGHT_DECAY = 1e-3
# Images that are measured; the standard errors are then some thousandths.
N_MEASURED = 200
PARTS = ("networks", "large")
# Name of the case: images, and outputs as AnsatzScorer takes them.
LARGE = {
    "2 images, all 1000 outputs": (2, "all"),
    "10 images, 64 directions": (10, 64),
    "40 images, 64 directions": (40, 64),
}


# -------------------------------------------------------------------- training


def load_data(path, n_train):
    """Images as float32 tensors (n, c, h, w) of mean 0 and variance 1, and labels."""
    with np.load(path, allow_pickle=False) as data:
        parts = [(data[f"X_{part}"], data[f"y_{part}"]) for part in ("train", "test")]
    tensors = []
    for X, y in parts:
        X = X[..., None] if X.ndim == 3 else X
        X = torch.from_numpy(X.astype(np.float32) / 255).permute(0, 3, 1, 2)
        tensors.append((X.contiguous(), torch.from_numpy(y.astype(np.int64))))
    (X, y), (X_test, y_test) = tensors
    X, y = X[:n_train], y[:n_train]
    mean = X.mean((0, 2, 3), keepdim=True)
    std = X.std((0, 2, 3), keepdim=True)
    return (X - mean) / std, y, (X_test - mean) / std, y_test


def train(network, X, y, epochs, seed=0):
    """Adam with flipped images and one cycle of the rate."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(
        network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY
    )
    n_batches = -(-len(X) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=epochs * n_batches
    )
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(X), generator=generator).split(BATCH):
            images = X[rows]
            if torch.rand((), generator=generator) < 0.5:
                images = images.flip(3)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(images), y[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def accuracy(network, X, y):
    """Share of images whose class has the largest output."""
    predicted = [network(batch).argmax(1) for batch in X.split(500)]
    return float((torch.cat(predicted) == y).float().mean())


def measure_network(name, data, epochs):
    """Train one network and measure it before and after.

    Returns
    -------
    measured : dict
        What the table shows.
    before_and_after : AnsatzReport
    """
    X, y, X_test, y_test = data
    torch.manual_seed(0)
    shape = {"channels": X.shape[1], "n_classes": int(y.max()) + 1}
    network, untrained = NETWORKS[name](**shape), NETWORKS[name](**shape)
    untrained.load_state_dict(network.state_dict())
    training, _ = timed(train, network, X, y, epochs)
    images = X_test[:N_MEASURED].numpy()
    options = {"channels": "first", "baseline": untrained, "agop_power": (1.0, 0.5)}
    measuring, layers = timed(AnsatzScorer(**options).report, network, images)
    before = np.mean([row.baseline for row in layers], axis=0)
    after, errors = layers.mean(), [row.standard_error for row in layers]
    measured = {
        "layers": len(layers),
        "accuracy": accuracy(network, X_test, y_test),
        **{"before": before[0], "after": after[0]},
        **{"before, p = 1/2": before[1], "after, p = 1/2": after[1]},
        "largest error": float(np.max(errors)),
        "train s": training["seconds"],
        "measure s": measuring["seconds"],
    }
    return measured, layers


def draw(reports, path):
    """Layers along x, trained against untrained, one panel a network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.4), layout="constrained")
    axes = figure.subplots(2, -(-len(reports) // 2), sharey=True).ravel()
    for ax, (name, layers) in zip(axes, reports.items(), strict=False):
        display = layers.plot(ax)
        for line, label in zip(display.lines_, ("trained", "untrained"), strict=True):
            line.set_label(label)
        ax.legend()
        ax.set_title(name, fontsize="medium")
        ax.tick_params(axis="x", labelsize=5.5)
    for ax in axes[len(reports) :]:
        ax.remove()
    figure.savefig(path, dpi=110)


# ------------------------------------------------------------------------ large


def measure_large(case):
    """Time and peak memory of a full ResNet-18 with 1000 outputs, in this process."""
    n_images, outputs = LARGE[case]
    torch.manual_seed(0)
    network = networks.resnet18(width=64, n_classes=1000, stem="imagenet")
    images = smooth_images(n_images, (224, 224, 3))
    AnsatzScorer(outputs=1).report(network, images[:1])  # threads have started
    rise, (measured, _) = peak_memory(
        timed, AnsatzScorer(outputs=outputs).report, network, images
    )
    return {**measured, "peak mib": rise / MEBIBYTE}


def main(argv=None):
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ansatz", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--data", metavar="FILE.npz", help="X_train, y_train, X_test, y_test in uint8")
    add("--n-train", type=int, default=5000, metavar="N", help="default: 5000")
    add("--epochs", type=int, default=20, metavar="N", help="default: 20")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--figure", metavar="FILE.png", help="draw the layers there")
    add("--json", metavar="FILE", help="write the results there")
    add("--measure-large", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure_large:
        json.dump(measure_large(options.measure_large), sys.stdout)
        return 0
    if "networks" in options.parts and options.data is None:
        parser.error("--data FILE.npz is needed to train networks")
    results, tables = {}, []
    if "networks" in options.parts:
        data = load_data(options.data, options.n_train)
        reports, results["networks"] = {}, {}
        for name in options.networks:
            measured, reports[name] = measure_network(name, data, options.epochs)
            results["networks"][name] = measured
        header = ["network", *measured]
        rows = [[name, *row.values()] for name, row in results["networks"].items()]
        tables += [format_table(header, rows), *map(str, reports.values())]
        if options.figure:
            draw(reports, options.figure)
    if "large" in options.parts:
        results["large"] = {
            case: in_subprocess("benchmarks.ansatz", "--measure-large", case)
            for case in LARGE
        }
        rows = [[case, *row.values()] for case, row in results["large"].items()]
        tables.append(format_table(["case", "s", "cpu s", "peak mib"], rows))
    report(tables, results, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
