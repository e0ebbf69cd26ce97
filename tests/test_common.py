"""scikit-learn's own checks of an estimator, without exceptions in float64."""

import warnings

import pytest
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor

ESTIMATORS = [ConvRFMClassifier(), ConvRFMRegressor()]
IN_FLOAT32 = [ConvRFMClassifier(dtype="float32"), ConvRFMRegressor(dtype="float32")]


@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_checks_pass(estimator, check):
    check(estimator)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize(
    "name", ["check_param_validation", "check_dataframe_column_names_consistency"]
)
def test_checks_that_check_estimator_leaves_out_pass(estimator, name):
    check = getattr(estimator_checks, name)
    with warnings.catch_warnings():
        # A check of a frame's names may tell of what it tries, not of what is wrong.
        warnings.simplefilter("error")
        check(type(estimator).__name__, estimator)


def exceptions_in_float32(estimator):
    return {}


@parametrize_with_checks(IN_FLOAT32, expected_failed_checks=exceptions_in_float32)
def test_scikit_learn_checks_pass_in_float32(estimator, check):
    check(estimator)
