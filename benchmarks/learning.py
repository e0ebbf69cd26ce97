"""``python -m benchmarks.learning``: accuracy of features by round of learning.

On training images that were held out, for variants of the metric's
beginning, its power, and the filters; 256 filters, 3000 images (framed digits: 1000).
Nothing of the test is used. Needs the files of ``python -m benchmarks.accuracy
--linear`` and scikit-learn 1.9, whose callbacks see the model after every round.
"""

import argparse

import numpy as np

from skconvrfm import ConvRFMClassifier

from .harness import add_data_option, check_data_option, format_table, report
from .models import TestScore, conv_features, with_layer_below
from .problems import LARGE

N_HELD_OUT = 1000
N_ROUNDS = 2
SMALL = {"features__patch_size": 3, "features__n_filters": 128}
TWO_LAYERS = "and a layer on them"
VARIANTS = {
    "whitened patches": {},
    "power ¼": {"agop_power": 0.25},
    "power ⅛": {"agop_power": 0.125},
    "power 1": {"agop_power": 1.0},
    "patches, identity": {"features__metric": "identity"},
    "Gaussian, identity": {
        "features__filters": "gaussian",
        "features__metric": "identity",
        "features__threshold": 0.0,
    },
    "Gaussian, whitened": {"features__filters": "gaussian"},
    "1024 filters": {"features__n_filters": 1024},
    "AGOP of all images": {"agop_samples": None},
    "patches of 11×11": {"features__patch_size": 11, "features__pool_grid": (2, 2)},
    "patches of 3×3": SMALL,
    TWO_LAYERS: SMALL,
}


def make_model(problem, variant):
    """Return the classifier of a variant."""
    model = ConvRFMClassifier(
        "linear", conv_features(problem, 256), n_rounds=N_ROUNDS, selection="last"
    ).set_params(**VARIANTS[variant])
    if variant == TWO_LAYERS:
        model.set_params(features=with_layer_below(model.features))
    return model


def load(problem, folder):
    """Return training images to fit on and others of them to judge by."""
    X, y, _, _ = LARGE[problem].load(folder, 0)
    if LARGE[problem].redrawn:  # all are trained on: another draw judges
        X_other, y_other, _, _ = LARGE[problem].load(folder, 99)
    else:
        X_other, y_other = X[-N_HELD_OUT:], y[-N_HELD_OUT:]
        X, y = X[:3000], y[:3000]
    return X, y, X_other, y_other


def measure(problem, variant, folder):
    """Measure accuracy and GCV by round.

    Returns
    -------
    dict of list
    """
    X, y, X_other, y_other = load(problem, folder)
    scores = TestScore(X_other, y_other)
    model = make_model(problem, variant).set_callbacks(scores).fit(X, y)
    return {"accuracy": scores.scores, "gcv": model.history_["gcv"].tolist()}


def make_table(problem, results):
    """Return a table with one line a variant."""
    rows = [
        [
            variant,
            " → ".join(f"{100 * value:.1f}" for value in result["accuracy"]),
            " → ".join(f"{value:.3f}" for value in result["gcv"]),
            str(int(np.argmin(result["gcv"]))),
        ]
        for variant, result in results.items()
    ]
    return format_table([problem, "accuracy by round", "GCV", "least GCV"], rows)


def main(argv=None):
    """Run the variants and print a table for each problem."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning", description=__doc__.splitlines()[0]
    )
    add_data_option(parser)
    parser.add_argument("--problems", nargs="+", choices=LARGE, default=list(LARGE))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    options = parser.parse_args(argv)
    check_data_option(parser, options)
    results = {}
    for problem in options.problems:
        results[problem] = {}
        for variant in options.variants:
            result = measure(problem, variant, options.data)
            results[problem][variant] = result
            print(problem, variant, result, flush=True)
    tables = [make_table(*item) for item in results.items()]
    report(tables, {"learning": results}, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
