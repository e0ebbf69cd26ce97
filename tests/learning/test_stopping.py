"""Rounds end when the criterion has not improved, and the fit says so."""

import numpy as np
import pytest

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm._fitting import Fitting
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK
from skconvrfm.learning.choice import describe_choice, short_reason
from skconvrfm.learning.rounds import Schedule

MACHINES = {
    "exact": {"kernel": ConvNTK(depth=1)},
    "landmarks": {"kernel": ConvNTK(depth=1), "landmarks": 15},
    "linear": {"kernel": "linear", "features": ConvFeatures(8)},
    "deep": {"kernel": ConvNTK(depth=1), "features": ConvFeatures(8, pool_size=2)},
}


def history(*criterion):
    """Return a history of the criterion alone, which is GCV."""
    values = {"round": [*range(len(criterion))], "criterion": [*criterion]}
    return values | {"gcv": [*criterion]}


@pytest.fixture(scope="module")
def faint():
    """Noise, with a faint square somewhere in half of the images."""
    X, y = np.random.default_rng(0).normal(size=(30, 7, 7, 2)), np.arange(30) % 2
    for i in range(1, 30, 2):
        X[i, i % 4 : i % 4 + 3, i % 3 : i % 3 + 3] += 0.7
    return X, y


@pytest.mark.parametrize(
    ("patience", "criterion", "ends"),
    [
        (1, [3.0], False),
        (1, [3.0, 2.0], False),
        (1, [3.0, 2.0, 2.0], True),
        (2, [3.0, 2.0, 2.5], False),
        (2, [3.0, 2.0, 2.5, 2.1], True),
        (2, [3.0, 2.0, 2.5, 1.9], False),
        (None, [1.0, 2.0, 3.0], False),
        (None, [1.0, 2.0, 3.0, 4.0, 5.0], True),
    ],
)
def test_rounds_end_after_so_many_without_improvement(patience, criterion, ends):
    assert Schedule(4, 0.5, "gcv", patience).ends(history(*criterion)) is ends


def test_last_round_has_no_criterion_to_wait_for(faint):
    X, y = faint
    assert not Schedule(4, 0.5, "last", 1).ends(history(1.0, 2.0))
    model = ConvRFMClassifier(selection="last", n_iter_no_change=2)
    with pytest.raises(ValueError, match="n_iter_no_change=2 .*selection='gcv'"):
        model.fit(X, y)


@pytest.mark.parametrize("selection", ["gcv", "loo", "holdout"])
@pytest.mark.parametrize("machine", MACHINES)
def test_fit_is_that_of_all_rounds_up_to_the_end(machine, selection, faint):
    X, y = faint
    options = MACHINES[machine] | {"selection": selection, "n_rounds": 4}
    short = ConvRFMClassifier(**options).fit(X, y)
    long = ConvRFMClassifier(**options, n_iter_no_change=None).fit(X, y)
    first, complete = short.learned_layers_[0], long.learned_layers_[0]
    found, every = (one.history_["criterion"] for one in (first, complete))
    worse = np.flatnonzero(every[1:] >= np.minimum.accumulate(every)[:-1])
    n_rounds = worse[0] + 2 if len(worse) else len(every)
    np.testing.assert_array_equal(found, every[:n_rounds])


@pytest.mark.parametrize("machine", MACHINES)
def test_interrupted_fit_goes_on_to_the_same_end(machine, faint, tmp_path, monkeypatch):
    X, y = faint
    options = MACHINES[machine] | {"n_rounds": 4}
    whole = ConvRFMClassifier(**options).fit(X, y)
    model = ConvRFMClassifier(**options, checkpoint=tmp_path)

    def interrupt(fitting, stages, best, history, ends):
        if len(history["round"]) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Fitting, "report", interrupt)
        model.fit(X, y)
    model.fit(X, y)
    outputs = model.decision_function(X), whole.decision_function(X)
    np.testing.assert_array_equal(*outputs)
    assert model.choice_reason_ == whole.choice_reason_


def test_warm_start_ends_as_well(faint):
    X, y = faint
    model = ConvRFMRegressor(ConvNTK(depth=1), n_rounds=6, warm_start=True).fit(X, y)
    criterion = model.fit(X, y).history_["criterion"]
    assert len(criterion) <= np.argmin(criterion) + 2


def test_reason_names_criterion_margin_and_end():
    known = history(4.0, 2.0, 2.5)
    text = describe_choice(known, 1, "gcv", 4)
    assert text == (
        "kept round 1 of 0 to 2: lowest GCV, 20 % below round 2; "
        "GCV did not improve after round 1, so rounds ended"
    )
    assert "ended" not in describe_choice(known, 1, "gcv", 2)


def test_reason_of_other_choices():
    assert short_reason(history(1.0), 0, "gcv") == "the only round"
    assert short_reason(history(1.0, 2.0), 1, "last") == "the last round"
    assert short_reason(history(1.0, 2.0), 0, "loo") == "lowest leave-one-out loss"
    assert short_reason(history(1.0, 0.99), 0, "gcv") == "no later GCV is lower by 2 %"
    grouped = history(2.0, 1.0) | {"gcv": [1.0, 2.0]}
    assert short_reason(grouped, 1, "gcv") == "lowest leave-one-group-out loss"
    refit = history(np.nan, np.nan)
    assert short_reason(refit, 1, "last") == "chosen by held-out rows"


def test_verbose_says_why_the_round_was_kept(faint, capsys):
    X, y = faint
    model = ConvRFMClassifier(ConvNTK(depth=1), n_rounds=3, verbose=1).fit(X, y)
    assert model.choice_reason_ in capsys.readouterr().out
