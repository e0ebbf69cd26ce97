"""``python -m benchmarks.ansatz``: the ansatz over the training of networks.

Trains networks in the shapes of AlexNet, VGG, ResNet and MobileNet on CIFAR-10 and
Fashion-MNIST, three seeds each, measures the correlation of filter covariance and patch
AGOP at checkpoints, and in the end beside weights drawn anew. Networks and measurements
go to a folder one by one, and are not made twice. Then measures time and memory on a
ResNet-18 of full size with 1000 outputs, each case in a process of its own.
"""

import argparse
import copy
import json
import sys
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import nn

from skconvrfm import AnsatzScorer
from skconvrfm.ansatz.baselines import estimate_statistics
from skconvrfm.display import AnsatzDisplay, AnsatzLayerDisplay, AnsatzTrainingDisplay

from . import networks
from .full_sets import decode
from .harness import (
    MEBIBYTE,
    ROOT,
    add_data_option,
    check_data_option,
    format_table,
    in_subprocess,
    peak_memory,
    report,
    smooth_images,
    timed,
)

FOLDER = ROOT / "benchmarks" / ".results" / "ansatz"
NETWORKS = {
    "AlexNet": lambda **data: networks.alexnet(width=16, dropout=0.1, **data),
    "VGG-11": lambda **data: networks.vgg11(width=16, **data),
    "VGG-11 with batch norm": lambda **data: networks.vgg11(
        width=16, batch_norm=True, **data
    ),
    "ResNet-18": lambda **data: networks.resnet18(width=8, **data),
    "MobileNet": lambda **data: networks.MobileNet(
        width=16, strides=(1, 2, 1, 2, 1), stem=1, **data
    ),
}
# File, images of the training, and how often each is seen.
SETS = {
    "CIFAR-10": ("cifar10_jpeg_50000_10000.npz", 20_000, 10),
    "Fashion-MNIST": ("fashion_mnist_5000_2000.npz", 5000, 20),
}
BATCH = 100
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-3
MARGIN = 3  # pixels by which a batch is shifted at most
CHECKPOINTS = (0, 0.02, 0.05, 0.1, 0.25, 0.5, 1)  # shares of the training
# Test images that are measured; the standard errors are then some thousandths.
N_MEASURED = 100
POWERS = (1.0, 0.5)
PARTS = ("training", "large")
# Name of the case: images, and outputs as AnsatzScorer takes them.
LARGE = {
    "2 images, all 1000 outputs": (2, "all"),
    "10 images, 64 directions": (10, 64),
    "40 images, 64 directions": (40, 64),
}


# -------------------------------------------------------------------- training


def load_data(path, n_train):
    """Images as float32 tensors (n, c, h, w) of mean 0 and variance 1, and labels."""
    tensors = []
    with np.load(path, allow_pickle=False) as data:
        for part, size in (("train", n_train), ("test", 2000)):
            if f"X_{part}" in data:
                X = data[f"X_{part}"][:size]
            else:
                X = decode(data[f"jpeg_{part}"], data[f"end_{part}"][:size])
            X = torch.from_numpy(X.reshape(*X.shape[:3], -1)).permute(0, 3, 1, 2)
            y = torch.from_numpy(data[f"y_{part}"][:size].astype(np.int64))
            tensors.append((X.contiguous().float() / 255, y))
    (X, y), (X_test, y_test) = tensors
    mean = X.mean((0, 2, 3), keepdim=True)
    std = X.std((0, 2, 3), keepdim=True)
    return (X - mean) / std, y, (X_test - mean) / std, y_test


def train(network, X, y, epochs, seed=0, *, decay=WEIGHT_DECAY, momentum=None):
    """Train on mirrored and shifted images with one cycle of the rate.

    Adam, or gradient descent with a ``momentum``. Yields the number of epochs done at
    `CHECKPOINTS`, with the network in evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters, rate = network.parameters(), LEARNING_RATE
    if momentum is None:
        optimizer = torch.optim.Adam(parameters, rate, weight_decay=decay)
    else:
        rate, options = 0.05, {"momentum": momentum, "nesterov": True}
        optimizer = torch.optim.SGD(parameters, rate, weight_decay=decay, **options)
    n_batches = -(-len(X) // BATCH)
    n_steps = epochs * n_batches
    checkpoints = {round(share * n_steps) for share in CHECKPOINTS}
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=n_steps)
    network.to(memory_format=torch.channels_last)
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
    images = images.flip(3) if mirrored % 2 else images
    return images.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def accuracy(network, X, y):
    """Share of images whose class has the largest output."""
    predicted = [network(batch).argmax(1) for batch in X.split(500)]
    return float((torch.cat(predicted) == y).float().mean())


def new_network(make, data, seed):
    """Return a network of ten outputs that is drawn by a seed."""
    torch.manual_seed(seed)
    return make(channels=data[0].shape[1], n_classes=int(data[1].max()) + 1).eval()


def with_statistics(network, X):
    """Return a copy whose batch norm has the statistics of some images."""
    network = copy.deepcopy(network)
    estimate_statistics(network, [X[:256]])
    return network


def measure(network, images, **options):
    """Return the report of a network for tensors of images."""
    scorer = AnsatzScorer(channels="first", agop_power=POWERS, **options)
    return scorer.report(network, images[:N_MEASURED].numpy())


def measure_training(make, data, epochs, seed, **options):
    """Train a network and measure it at checkpoints.

    Returns
    -------
    measured : dict
        Accuracy, seconds, and the records of the reports by checkpoint; those of the
        last one beside networks of weights drawn anew.
    network, initial : Module
        The trained network, and as it was drawn.
    """
    X, y, X_test, y_test = data
    network, checkpoints = new_network(make, data, seed), []
    initial = copy.deepcopy(network)
    training = train(network, X, y, epochs, seed, **options)
    while True:
        step, epoch = timed(next, training, None)
        if epoch is None:
            break
        last = {"baseline": "reinitialised"} if epoch == epochs else {}
        state = network if epoch else with_statistics(network, X)
        measuring, layers = timed(measure, state, X_test, **last)
        checkpoints.append(
            {
                "epoch": epoch,
                "accuracy": 100 * accuracy(state, X_test, y_test),
                "train s": step["seconds"],
                "measure s": measuring["seconds"],
                "records": layers.records(),
            }
        )
    return {"checkpoints": checkpoints}, network, initial


def measure_all(options, results):
    """Train and measure what is not there yet."""
    done, data = {key_of(row) for row in read(results)}, {}
    for seed, name in product(range(options.seeds), options.sets):
        file, n_train, epochs = SETS[name]
        n_train, epochs = options.n_train or n_train, options.epochs or epochs
        for kind in options.networks:
            key = {"set": name, "network": kind, "seed": seed}
            if key_of(key) in done:
                continue
            if name not in data:
                data[name] = load_data(options.data / file, n_train)
            row, *states = measure_training(NETWORKS[kind], data[name], epochs, seed)
            states = [network.state_dict() for network in states]
            torch.save(states, options.folder / file_name(key))
            with results.open("a") as lines:
                lines.write(json.dumps({**key, **row}) + "\n")


def key_of(row):
    """Return what a measurement is known by."""
    return row["set"], row["network"], row["seed"]


def file_name(key):
    """Return the name of the file of a network's weights, trained and drawn."""
    return f"{'-'.join(map(str, key_of(key)))}.pt".replace(" ", "-")


def read(results):
    """Return the measurements in a file."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text().splitlines()]


# ---------------------------------------------------------------------- tables


def summary(rows):
    """Return table rows: set, network, accuracy and means by kind and power."""
    table = []
    for (name, network), same in grouped(rows, "set", "network").items():
        accuracies = [row["checkpoints"][-1]["accuracy"] for row in same]
        layers = layer_table(same)
        for kind, power in dict.fromkeys(key[1:] for key in layers):
            some = [v for key, v in layers.items() if key[1:] == (kind, power)]
            values = [np.mean([one[column] for one in some]) for column in MEANS]
            above = sum(one["lift"] > 2 * one["error"] for one in some)
            below = sum(one["lift"] < -2 * one["error"] for one in some)
            head = [name, network, np.mean(accuracies), kind, power, len(some)]
            table.append([*head, *map(float, values), above, below])
    return table


MEANS = ("initial", "correlation", "baseline", "lift", "correlation_no_trace")
SUMMARY = (
    *("set", "network", "accuracy", "kind", "power", "layers", *MEANS),
    *("lift > 2 se", "lift < -2 se"),
)


def layer_table(rows, at=-1):
    """Return statistics by layer, kind and power: means over seeds of one network.

    They are those at a checkpoint. The error of a lift is over seeds, and over images
    and baselines of one of them.
    """
    first = [by_layer(row["checkpoints"][0]["records"]) for row in rows]
    there = [by_layer(row["checkpoints"][at]["records"]) for row in rows]
    table = {}
    for key in there[0]:
        found = [records[key] for records in there]
        values = {name: np.mean([one[name] for one in found]) for name in MEANS[1:]}
        values["initial"] = np.mean([records[key]["correlation"] for records in first])
        inner = np.mean([one["lift_standard_error"] for one in found])
        spread = np.std([one["lift"] for one in found], ddof=min(1, len(found) - 1))
        values["error"] = np.hypot(inner, spread) / np.sqrt(len(found))
        table[key] = {name: float(value) for name, value in values.items()}
    return table


def by_layer(records):
    """Return records by name, kind and power."""
    return {(one["name"], one["kind"], one["agop_power"]): one for one in records}


def grouped(rows, *names):
    """Return the rows with the same values, in lists by the values."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def tables(rows):
    """Return tables as text: means by kind, and each network's layers."""
    texts = [format_table(SUMMARY, summary(rows))]
    for (name, network), same in grouped(rows, "set", "network").items():
        header = ["layer", "kind", "power", *MEANS, "error"]
        lines = [
            [*key, *(values[column] for column in header[3:])]
            for key, values in layer_table(same).items()
        ]
        texts.append(f"{name}, {network}\n\n{format_table(header, lines)}")
    return texts


def panels(rows, path, draw):
    """Draw each set and network in a panel, by a function of its rows and axes."""
    from matplotlib.figure import Figure

    groups = grouped(rows, "set", "network")
    n_rows = len({name for name, _ in groups})
    n_columns = -(-len(groups) // n_rows)
    figure = Figure(figsize=(2.9 * n_columns, 3.1 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False).ravel()
    for ax, (title, same) in zip(axes, groups.items(), strict=False):
        draw(same, ax)
        ax.set_title(", ".join(title), fontsize="small")
        if ax.get_legend():
            ax.get_legend().remove()
        if ax not in axes[::n_columns]:
            ax.set_ylabel("")
    figure.savefig(path, dpi=110)


def draw_training(rows, ax):
    """Draw correlations over the epochs, means over the seeds."""
    tables = [layer_table(rows, at) for at in range(len(rows[0]["checkpoints"]))]
    keys = [key for key in tables[0] if key[2] == 1]
    AnsatzTrainingDisplay(
        steps=[point["epoch"] for point in rows[0]["checkpoints"]],
        names=[name for name, _, _ in keys],
        correlation=[[one[key]["correlation"] for key in keys] for one in tables],
        step_name="Epoch",
    ).plot(ax)


def draw_depth(rows, ax):
    """Draw correlations and baselines from the first layer to the last."""
    table = {key: row for key, row in layer_table(rows).items() if key[2] == 1}
    AnsatzDisplay(
        names=[str(number) for number in range(1, len(table) + 1)],
        correlation=[row["correlation"] for row in table.values()],
        standard_error=[row["error"] for row in table.values()],
        baseline=[row["baseline"] for row in table.values()],
    ).plot(ax)
    ax.tick_params(axis="x", labelsize=6)


def draw_layers(folder, data, name, network, layers, path):
    """Draw the two matrices of layers of a trained network, two rows of panels each."""
    from matplotlib.figure import Figure

    key = {"set": name, "network": network, "seed": 0}
    model = new_network(NETWORKS[network], data, 0)
    model.load_state_dict(torch.load(folder / file_name(key), weights_only=True)[0])
    found = measure(model, data[2])
    figure = Figure(figsize=(9, 4.2 * len(layers)), layout="constrained")
    axes = figure.subplots(2 * len(layers), 6).reshape(len(layers), -1)
    for places, layer in zip(axes, layers, strict=True):
        AnsatzLayerDisplay.from_report(found, layer, n_patches=5, ax=places)
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
    add_data_option(parser)
    add = parser.add_argument
    add("--folder", type=Path, default=FOLDER, help="of networks and measurements")
    add("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="SET")
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--seeds", type=int, default=3, metavar="N", help="networks of each; 3")
    add("--n-train", type=int, metavar="N", help="default: 20,000, or all there are")
    add("--epochs", type=int, metavar="N", help="default: 10 or 20")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    add("--figures", type=Path, metavar="FOLDER", help="draw there")
    add("--json", metavar="FILE", help="write the results there")
    add("--measure-large", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure_large:
        json.dump(measure_large(options.measure_large), sys.stdout)
        return 0
    results, texts = {}, []
    if "training" in options.parts:
        check_data_option(parser, options)
        options.folder.mkdir(parents=True, exist_ok=True)
        lines = options.folder / "results.jsonl"
        measure_all(options, lines)
        rows = [row for row in read(lines) if row["set"] in options.sets]
        rows = [row for row in rows if row["network"] in options.networks]
        results["training"] = rows
        texts += tables(rows)
        if options.figures:
            options.figures.mkdir(parents=True, exist_ok=True)
            panels(rows, options.figures / "ansatz_training.png", draw_training)
            panels(rows, options.figures / "ansatz_depth.png", draw_depth)
    if "large" in options.parts:
        results["large"] = {
            case: in_subprocess("benchmarks.ansatz", "--measure-large", case)
            for case in LARGE
        }
        table = [[case, *row.values()] for case, row in results["large"].items()]
        texts.append(format_table(["case", "s", "cpu s", "peak mib"], table))
    report(texts, results, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
