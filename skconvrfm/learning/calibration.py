"""Probabilities from scores: a softmax at one temperature, fitted to left-out rows."""

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_expit, log_softmax
from sklearn.utils.extmath import softmax

# Temperatures of the probabilities; scores of well separated classes are ±1.
TEMPERATURE_RANGE = (1e-2, 1e3)


def class_scores(scores):
    """Return one column per class: a binary score counts for one, against the other."""
    scores = np.reshape(scores, (len(scores), -1))
    return np.hstack([-scores, scores]) if scores.shape[1] == 1 else scores


def class_shares(targets):
    """Return the share of each class in targets -1 and 1, or in means of these."""
    return (1 + class_scores(targets)) / 2


def log_probabilities(scores, multilabel):
    """Return logarithms of probabilities of classes, or of each label by itself."""
    if multilabel:
        return log_expit(2 * scores)
    return log_softmax(class_scores(scores), axis=1)


def fit_temperature(prediction, targets, weights):
    """Return the temperature that makes the softmax of left-out scores likeliest.

    Targets are -1 and 1, or means of these over copies of an image. They are smoothed
    by one more observation, of all classes in equal parts (in the manner of Platt
    1999), so that separable scores do not ask for certainty. The likelihood is concave
    in the inverse temperature: its slope has one root.
    """
    scores, total = class_scores(prediction), weights.sum()
    smoothed = (class_shares(targets) * total + 1 / scores.shape[1]) / (total + 1)

    def slope(inverse):
        excess = softmax(inverse * scores) - smoothed
        return weights @ (excess * scores).sum(axis=1)

    coldest, hottest = TEMPERATURE_RANGE
    if slope(1 / hottest) >= 0:
        return hottest
    if slope(1 / coldest) <= 0:
        return coldest
    return 1 / brentq(slope, 1 / hottest, 1 / coldest)
