"""``python -m benchmarks.solar_cells``: ConvRFM, SVCs and a forest, by 5-fold.

On the images of elpv-dataset; the SVCs are on HOG and on PCA.
"""

from functools import partial
from itertools import pairwise, product

import numpy as np
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC

from skconvrfm import ConvRFMClassifier
from skconvrfm.features import ConvFeatures

from .harness import RESULTS, Results, format_table, mean_and_each, program, timed

SIDE, N_FOLDS = 100, 5  # pixels, of 300
SQUARES = (10, 20, 25)  # pixels, of HOG
FOLDS, INNER = (StratifiedKFold(n, shuffle=True, random_state=0) for n in (N_FOLDS, 3))


def read_cells():
    """Return images (n, SIDE, SIDE) in [0, 1], and True where p(defect) > 1/2."""
    from elpv_dataset.utils import load_dataset

    images, probability, _ = load_dataset()
    block = images.shape[1] // SIDE
    images = images.reshape(-1, SIDE, block, SIDE, block).mean((2, 4)) / 255
    return images.astype(np.float32), probability > 0.5


def convrfm(pool, normalize):
    """Return two layers with a pool, and mirrors, below a Laplace kernel."""
    first = {"patch_size": 7, "pool_size": 6, "pool_overlap": 1.0}
    second = {"patch_size": 3, "shrinkage": 3.0, "pool_overlap": 0.5, "mirror": True}
    layers = [
        ConvFeatures(96, normalize=normalize, pool=pool, **first),
        ConvFeatures(512, pool=pool, **second),
    ]
    return ConvRFMClassifier("laplace", layers, n_rounds=0, random_state=0)


def hog_rows(images):
    """Return histograms of gradients in blocks of 2×2 squares, of three sizes."""
    from skimage.feature import hog

    rows = [
        [hog(image, pixels_per_cell=(n, n), cells_per_block=(2, 2)) for n in SQUARES]
        for image in images
    ]
    return np.stack([np.concatenate(parts) for parts in rows])


def svc(*steps, **grid):
    """Return steps and an SVC, with parameters by the AUC of inner 3-fold."""
    grid["svc__C"] = [1, 10]
    steps = make_pipeline(*steps, SVC())
    return GridSearchCV(steps, grid, scoring="roc_auc", cv=INNER)


def hog_svc():
    """Return HOG and an SVC on the rows of one size of squares."""
    ends = np.cumsum([0] + [36 * (SIDE // n - 1) ** 2 for n in SQUARES])
    parts = [lambda rows, a=a, b=b: rows[:, a:b] for a, b in pairwise(ends)]
    steps = FunctionTransformer(), StandardScaler()
    search = svc(*steps, functiontransformer__func=parts)
    return make_pipeline(FunctionTransformer(hog_rows), search)


FLAT = FunctionTransformer(lambda images: images.reshape(len(images), -1))
PCA_SVC = svc(PCA(random_state=0), pca__n_components=[30, 100])
FOREST = RandomForestClassifier(500, random_state=0)
MACHINES = {
    "ConvRFM maxima": partial(convrfm, "max", None),
    "ConvRFM normalised": partial(convrfm, "norm", 0.03),
    "HOG + SVC": hog_svc,
    "PCA + SVC": lambda: make_pipeline(FLAT, PCA_SVC),
    "random forest": lambda: make_pipeline(FLAT, FOREST),
}
AVERAGED = ["ConvRFM maxima", "ConvRFM normalised"]


def one_fold(name, images, defective, train, test):
    """Return probabilities of a test part, or scores about 1/2, and seconds of all."""

    def predicted():
        machine = MACHINES[name]().fit(images[train], defective[train])
        if hasattr(machine, "predict_proba"):
            return machine.predict_proba(images[test])[:, 1]
        return machine.decision_function(images[test]) + 0.5

    seconds, scores = timed(predicted)
    return seconds | {"scores": scores.tolist()}


def cells(names, records, truths):
    """Return the figures of the mean score of machines."""
    found = [[records[name, k] for name in names] for k in range(N_FOLDS)]
    scores = [np.mean([one["scores"] for one in each], axis=0) for each in found]
    pairs = list(zip(truths, scores, strict=True))
    right = [np.mean((score > 0.5) == truth) for truth, score in pairs]
    areas = mean_and_each([roc_auc_score(*pair) for pair in pairs], digits=3)
    seconds = sum(one["cpu_seconds"] for each in found for one in each) / N_FOLDS
    return [float(np.mean(right)), *areas, seconds]


def measure(options):
    """Return the table of means over folds, and its rows."""
    images, defective = read_cells()
    splits = list(FOLDS.split(images, defective))
    results = Results(RESULTS / "solar_cells.jsonl", ("machine", "fold"))
    for name, k in product(options.only, range(N_FOLDS)):
        arguments = images, defective, *splits[k]
        results.once((name, k), partial(one_fold, name, *arguments))
    groups = {name: [name] for name in options.only}
    if set(AVERAGED) <= set(options.only):
        groups["both ConvRFM"] = AVERAGED
    truths = [defective[test] for _, test in splits]
    found = results.read()
    rows = [[name, *cells(each, found, truths)] for name, each in groups.items()]
    headers = ["machine", "accuracy", "AUC", "AUC by fold", "CPU s"]
    return [format_table(headers, rows)], {"solar_cells": rows}


main = program(measure, MACHINES, needs_data=False)

if __name__ == "__main__":
    raise SystemExit(main())
