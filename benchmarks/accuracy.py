"""``python -m benchmarks.accuracy``: fixed, learned, deep, and features for others.

Framed MNIST of sigma 1 (500 training images) and Fashion-MNIST (1000), several draws.
Every choice is made on the training images alone: ridge, round and layer by GCV, the
parameters of the others by cross-validation. Needs ``mnist_5000_2000.npz`` and
``fashion_mnist_5000_2000.npz`` (``X_train``, ``y_train``, ``X_test``, ``y_test``).

With ``--linear`` the table of feature layers instead, see `benchmarks.linear`; needs
``cifar10_5000_2000.npz`` too.
"""

import argparse
import tempfile
import time

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from skconvrfm import ConvRFMClassifier, PatchAGOPTransformer
from skconvrfm.kernels import ConvNTK

from . import linear
from .harness import add_data_option, check_data_option, format_table, report
from .models import conv_features, deep_convrfm
from .problems import LARGE, SMALL

FOLDS = 3
# Filters of the layer under the Gaussian kernel.
FILTERS = 512


def make_models(name, n_rounds, n_filters, image_shape, seed, cache):
    """Return the models by name; all take flat rows.

    Parameters
    ----------
    name : str
        A name in `SMALL`, for the patches of feature layers.
    n_rounds : int
        AGOP rounds at most.
    n_filters : int
        Filters of a layer of Deep ConvRFM.
    image_shape : tuple of int
        Of an image.
    seed : int
        Of all draws.
    cache : path-like
        A folder for features that several models see.

    Returns
    -------
    dict of estimator
    """
    common = {"image_shape": image_shape, "random_state": seed}
    learned = {"n_rounds": n_rounds, **common}

    def behind_features(model, grid):
        features = PatchAGOPTransformer(
            ConvRFMClassifier(ConvNTK(depth=1), **learned), n_filters=256, pool=(3, 3)
        )
        steps = [("features", features), ("scale", StandardScaler()), ("model", model)]
        return GridSearchCV(
            Pipeline(steps, memory=cache),
            {"features__estimator__kernel__patch_size": [5, 7], **grid},
            cv=FOLDS,
        )

    models = {
        "fixed kernel": ConvRFMClassifier(n_rounds=0, **common),
        "ConvRFM": ConvRFMClassifier(**learned),
    }
    for layers in (2, 3):
        for activation in ("relu", "identity"):
            models[f"Deep ConvRFM, {layers} layers, {activation}"] = deep_convrfm(
                layers, n_filters, activation, bias=0.3, **learned
            )
    features = conv_features(name, FILTERS)
    for kind, parameters in (
        ("fixed", {**learned, "n_rounds": 0}),
        ("learned", learned),
    ):
        models[f"ConvFeatures + Gaussian, {kind}"] = ConvRFMClassifier(
            "gaussian", features, **parameters
        )
    models["PatchAGOP + logistic regression"] = behind_features(
        LogisticRegression(max_iter=2000), {"model__C": [1e-3, 1e-2, 1e-1]}
    )
    models["PatchAGOP + SVC"] = behind_features(SVC(), {"model__C": [1, 10, 100]})
    models["pixels + SVC"] = GridSearchCV(
        SVC(), {"C": [1, 10, 100], "gamma": ["scale", 1e-3, 1e-2]}, cv=FOLDS
    )
    models["pixels + random forest"] = RandomForestClassifier(500, random_state=seed)
    return models


def measure(name, load, options):
    """Return accuracies and seconds of every model, one entry a seed."""
    results = {}
    for seed in range(options.seeds):
        X_train, y_train, X_test, y_test = load(options.data, seed)
        flat_train, flat_test = (X.reshape(len(X), -1) for X in (X_train, X_test))
        with tempfile.TemporaryDirectory() as cache:
            models = make_models(
                name, options.rounds, options.filters, X_train.shape[1:], seed, cache
            )
            for label, model in models.items():
                start = time.perf_counter()
                model.fit(flat_train, y_train)
                seconds = time.perf_counter() - start
                result = {
                    "accuracy": model.score(flat_test, y_test),
                    "seconds": seconds,
                    "layer": getattr(model, "best_layer_", None),
                    "round": getattr(model, "best_round_", None),
                    "chosen": dict(getattr(model, "best_params_", {})),
                }
                results.setdefault(label, []).append(result)
                print(f"{name}  seed {seed}  {label}: {result}", flush=True)
    return results


def make_table(name, results):
    """Return the mean accuracies of a data set as a table."""
    rows = []
    for label, runs in results.items():
        accuracies = [100 * run["accuracy"] for run in runs]
        layers = {run["layer"] for run in runs} - {None}
        rows.append(
            [
                label,
                f"{np.mean(accuracies):.1f} %",
                " ".join(f"{accuracy:.1f}" for accuracy in accuracies),
                f"{np.mean([run['seconds'] for run in runs]):.1f} s",
                ", ".join(str(layer + 1) for layer in sorted(layers)) or "-",
            ]
        )
    headers = [name, "accuracy", "by draw", "fit", "layers kept"]
    return format_table(headers, rows)


def parse_options(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=__doc__.splitlines()[0]
    )
    add_data_option(parser)
    parser.add_argument("--seeds", type=int, default=3, help="draws")
    parser.add_argument("--rounds", type=int, default=2, help="AGOP rounds at most")
    parser.add_argument("--filters", type=int, default=16, help="of a deep layer")
    parser.add_argument("--json", help="file to write the results to")
    path = parser.add_argument_group("feature layers")
    path.add_argument("--linear", action="store_true", help="its table instead")
    path.add_argument("--only", nargs="+", choices=linear.ROWS, default=linear.ROWS)
    path.add_argument("--problems", nargs="+", choices=LARGE, default=list(LARGE))
    path.add_argument(
        "--merge", nargs="+", metavar="FILE", help="table of earlier results (--json)"
    )
    options = parser.parse_args(argv)
    check_data_option(parser, options)
    return options


def main(argv=None):
    """Run the comparison and print a table for each data set."""
    options = parse_options(argv)
    if options.linear:
        linear.run(options)
        return
    results = {name: measure(name, load, options) for name, load in SMALL.items()}
    tables = [make_table(name, measured) for name, measured in results.items()]
    report(tables, {"accuracy": results}, options.json)


if __name__ == "__main__":
    main()
