"""``python -m benchmarks.ansatz``: the neural feature ansatz on networks.

*training*: networks in the shapes of AlexNet, VGG, ResNet and MobileNet are trained on
CIFAR-10 and Fashion-MNIST; correlation of filter covariance and patch AGOP at
checkpoints, at the end beside weights drawn anew. Networks and measurements go to a
folder one by one, and are not made twice. *reasons*: variants of the training, decay,
optimiser, length and depthwise filters, and other ways to measure, beside the network
as it was drawn. *known*: networks that others trained. ``--figures`` draws them.
"""

import copy
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import nn

from skconvrfm import AnsatzScorer
from skconvrfm.ansatz.baselines import estimate_statistics
from skconvrfm.display import AnsatzDisplay, AnsatzLayerDisplay, AnsatzTrainingDisplay

from . import networks
from .ansatz_ways import balance, measure_ways
from .harness import RESULTS, OwnMemory, Results, format_table, program, timed
from .problems import FILES, WHOLE, in_unit_range, read

BATCH, MARGIN = 100, 3  # images of a step, and pixels by which they are shifted at most
CHECKPOINTS = (0, 0.02, 0.05, 0.1, 0.25, 0.5, 1)  # shares of the training
POWERS = (1.0, 0.5)
KEY = "set", "network", "seed", "n_train", "epochs", "measured"
MEANS = "correlation", "baseline", "lift", "correlation_no_trace"
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
RECIPES = {
    **{name: (make, {}) for name, make in NETWORKS.items()},
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


# -------------------------------------------------------------------- training


def new_network(make, data, seed):
    """Return a network that is drawn by a seed."""
    torch.manual_seed(seed)
    return make(channels=data[0].shape[1], n_classes=int(data[1].max()) + 1).eval()


def with_statistics(network, X):
    """Return a copy whose batch norm has the statistics of some images."""
    network = copy.deepcopy(network)
    estimate_statistics(network, [X[:256]])
    return network


def report(network, images, **options):
    """Return the report of a network for tensors of images."""
    scorer = AnsatzScorer(channels="first", agop_power=POWERS, **options)
    return scorer.report(network, images.numpy())


@torch.no_grad()
def accuracy(network, X, y):
    """Return the per cent of images whose class has the largest output."""
    predicted = torch.cat([network(batch).argmax(1) for batch in X.split(500)])
    return 100 * float((predicted == y).float().mean())


def trained(options, name, kind, seed):
    """Train a network unless it is there; return its record, data, and pair.

    The record has accuracy and layers at checkpoints, the last beside weights drawn
    anew; the pair is the network trained, and as it was drawn.
    """
    file, n_train, epochs = SETS[name]
    make, chosen = RECIPES[kind]
    [n_train] = options.sizes[:1] or [n_train]
    epochs = options.epochs or chosen.get("epochs", epochs)
    chosen = {key: value for key, value in chosen.items() if key != "epochs"}
    data = X, y, X_test, y_test = load(options.data / file, n_train)
    key = name, kind, seed, n_train, epochs, options.measured
    path = options.folder / f"{'-'.join(map(str, key))}.pt".replace(" ", "-")

    def run():
        network, checkpoints = new_network(make, data, seed), []
        drawn = copy.deepcopy(network)
        for epoch in train(network, X, y, epochs, seed, **chosen):
            state = network if epoch else with_statistics(network, X)
            last = {"baseline": "reinitialised"} if epoch == epochs else {}
            measured = X_test[: options.measured]
            layers = report(state, measured, **last).records()
            right = accuracy(state, X_test, y_test)
            checkpoints.append({"epoch": epoch, "accuracy": right, "records": layers})
        options.folder.mkdir(parents=True, exist_ok=True)
        torch.save([network.state_dict(), drawn.state_dict()], path)
        return {"checkpoints": checkpoints}

    record = Results(options.folder / "results.jsonl", KEY).once(key, run)
    pair = [new_network(make, data, seed) for _ in range(2)]
    for network, state in zip(pair, torch.load(path, weights_only=True), strict=True):
        network.load_state_dict(state)
    return record, data, pair


def training(options):
    """Train what is not there yet; return means by kind and those of all layers."""
    found = {
        (name, kind): [
            trained(options, name, kind, seed)[0] for seed in range(options.draws)
        ]
        for name, kind in product(options.sets, options.networks)
        if kind in NETWORKS
    }
    summary, layers = [], []
    for (name, kind), runs in found.items():
        table = layer_table(runs)
        score = float(np.mean([run["checkpoints"][-1]["accuracy"] for run in runs]))
        for group in dict.fromkeys(key[1:] for key in table):
            some = [row for key, row in table.items() if key[1:] == group]
            means = [float(np.mean([row[c] for row in some])) for c in COLUMNS[:-1]]
            above = sum(row["lift"] > 2 * row["error"] for row in some)
            below = sum(row["lift"] < -2 * row["error"] for row in some)
            summary.append([name, kind, score, *group, len(some), *means, above, below])
        layers += [[name, kind, *key, *row.values()] for key, row in table.items()]
    if options.figures:
        draw_panels(found, options.figures / "ansatz_training.png", draw_training)
        draw_panels(found, options.figures / "ansatz_depth.png", draw_depth)
    head = ["set", "network"]
    counts = ["lift > 2 se", "lift < -2 se"]
    kinds = ["accuracy", "kind", "power", "layers", *COLUMNS[:-1], *counts]
    return [
        format_table(head + kinds, summary),
        format_table([*head, "layer", "kind", "power", *COLUMNS], layers),
    ]


COLUMNS = ("initial", *MEANS, "error")


def layer_table(runs, at=-1):
    """Return `COLUMNS` by layer, kind and power: means over the seeds of a network.

    They are those at a checkpoint. The error of a lift is over seeds, and over images
    and baselines of one of them.
    """
    first, there = (
        [by_layer(run["checkpoints"][index]["records"]) for run in runs]
        for index in (0, at)
    )
    table = {}
    for key in there[0]:
        found = [records[key] for records in there]
        initial = np.mean([records[key]["correlation"] for records in first])
        means = [np.mean([one[name] for one in found]) for name in MEANS]
        inner = np.mean([one["lift_standard_error"] for one in found])
        spread = np.std([one["lift"] for one in found], ddof=min(1, len(found) - 1))
        error = np.hypot(inner, spread) / np.sqrt(len(found))
        table[key] = dict(
            zip(COLUMNS, map(float, (initial, *means, error)), strict=True)
        )
    return table


def by_layer(records):
    """Return records by name, kind and power."""
    return {(one["name"], one["kind"], one["agop_power"]): one for one in records}


# --------------------------------------------------------------------- figures


def draw_panels(found, path, draw):
    """Draw each set and network in a panel, by a function of its runs and axes."""
    from matplotlib.figure import Figure

    n_rows = len({name for name, _ in found})
    n_columns = -(-len(found) // n_rows)
    figure = Figure(figsize=(2.9 * n_columns, 3.1 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False).ravel()
    for ax, (title, runs) in zip(axes, found.items(), strict=False):
        draw(runs, ax)
        ax.set_title(", ".join(title), fontsize="small")
        if ax.get_legend():
            ax.get_legend().remove()
        if ax not in axes[::n_columns]:
            ax.set_ylabel("")
    figure.savefig(path, dpi=110)


def draw_training(runs, ax):
    """Draw correlations over the epochs, means over the seeds."""
    points = runs[0]["checkpoints"]
    tables = [layer_table(runs, at) for at in range(len(points))]
    keys = [key for key in tables[0] if key[2] == 1]
    AnsatzTrainingDisplay(
        steps=[point["epoch"] for point in points],
        names=[name for name, _, _ in keys],
        correlation=[[one[key]["correlation"] for key in keys] for one in tables],
        step_name="Epoch",
    ).plot(ax)


def draw_depth(runs, ax):
    """Draw correlations and baselines from the first layer to the last."""
    rows = [row for key, row in layer_table(runs).items() if key[2] == 1]
    AnsatzDisplay(
        names=[str(number + 1) for number in range(len(rows))],
        correlation=[row["correlation"] for row in rows],
        standard_error=[row["error"] for row in rows],
        baseline=[row["baseline"] for row in rows],
    ).plot(ax)
    ax.tick_params(axis="x", labelsize=6)


def draw_first_layer(layers, path):
    """Draw the two matrices of the first layer, and their leading eigenvectors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.3), layout="constrained")
    axes = figure.subplots(2, 7).ravel()
    AnsatzLayerDisplay.from_report(layers, layers[0].name, n_patches=6, ax=axes)
    figure.savefig(path, dpi=110)


# --------------------------------------------------------------------- reasons

STATISTICS = ("kind", "power", "correlation", "as drawn", "lift")


def reasons(options):
    """Return tables of variants, and of other ways to measure the networks."""
    variants, ways = [], []
    for kind in options.networks:
        record, data, (network, drawn) = trained(options, "CIFAR-10", kind, 0)
        X, y, *test = data
        drawn = with_statistics(drawn, X)
        score = record["checkpoints"][-1]["accuracy"]
        head = [kind, score, balance(network, X[:5000], y[:5000])]
        images, classes = (part[: options.measured] for part in test)
        layers = report(network, images, baseline=drawn).records()
        variants += [[*head, *row] for row in means_by_kind(layers)]
        if kind in NETWORKS:
            found = measure_ways(network, drawn, images, classes)
            for way, layers in found.items():
                ways += [[kind, way, *row] for row in means_by_kind(layers)]
    return [
        format_table(["network", "accuracy", "balance", *STATISTICS], variants),
        format_table(["network", "measured by", *STATISTICS], ways),
    ]


def means_by_kind(records, columns=MEANS[:3]):
    """Return kind, power, and means of statistics over the layers."""
    groups = {}
    for one in records:
        groups.setdefault((one["kind"], one["agop_power"]), []).append(one)
    return [
        [*key, *(mean_of_finite([one[name] for one in some]) for name in columns)]
        for key, some in groups.items()
    ]


def mean_of_finite(values):
    """Return the mean of the values that are numbers, None without any."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else None


# ----------------------------------------------------------------------- known


def known(options):
    """Return means by kind of trained networks, and what each took."""
    with np.load(options.data / "cifar10_lossless_400_164.npz") as archive:
        small = in_unit_range(archive["X_train"]), archive["y_train"]
    with np.load(options.data / "imagenet_sample_40.npz") as archive:
        large = archive["X"].astype(np.float32), archive["y"]
    squeezenet = "squeezenet_v1.0_imagenet_compressed.npz"
    cases = {
        "ResNet-20": (networks.resnet20(), "weights_cifar10_resnet20.npz", *small),
        "SqueezeNet": (networks.SqueezeNet(), squeezenet, *large),
    }
    columns = (*MEANS, "eigenvector_overlap")
    rows, costs = [], []
    for name, (network, file, X, y) in cases.items():
        networks.load_npz(network, options.data / file).eval()
        [n] = options.sizes[:1] or [40 if X is large[0] else 200]
        images = torch.from_numpy(X[:n]).permute(0, 3, 1, 2)
        right = accuracy(network, images, torch.from_numpy(y[:n]))
        scorer = AnsatzScorer(baseline="reinitialised", agop_power=POWERS)
        with OwnMemory() as memory:
            times, layers = timed(scorer.report, network, X[:n])
        means = means_by_kind(layers.records(), columns)
        rows += [[name, *row] for row in means]
        costs.append([name, len(images), right, *times.values(), memory.peak])
        if options.figures:
            path = options.figures / f"ansatz_{name.lower()}.png"
            draw_first_layer(layers, path)
    headers = ["network", "images", "right, %", "s", "CPU s", "own, MiB"]
    return [
        format_table(["network", "kind", "power", *columns], rows),
        format_table(headers, costs),
    ]


PARTS = {"training": training, "reasons": reasons, "known": known}


def measure(options):
    """Make the tables asked for."""
    if options.figures:
        options.figures.mkdir(parents=True, exist_ok=True)
    tables = {name: PARTS[name](options) for name in options.only}
    return [table for found in tables.values() for table in found], tables


main = program(
    measure,
    PARTS,
    sizes=[],
    draws=3,
    options={
        "--folder": {"type": Path, "default": RESULTS / "ansatz"},
        "--sets": {"nargs": "+", "choices": SETS, "default": list(SETS)},
        "--networks": {"nargs": "+", "choices": RECIPES, "default": list(RECIPES)},
        "--epochs": {"type": int, "help": "10 or 20 by default"},
        # The standard errors of 100 images are some thousandths.
        "--measured": {"type": int, "default": 100, "help": "test images"},
        "--figures": {"type": Path, "metavar": "FOLDER", "help": "draw there"},
    },
)

if __name__ == "__main__":
    raise SystemExit(main())
