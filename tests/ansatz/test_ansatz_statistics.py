"""Statistics of layers, baselines and their errors equal those of full matrices."""

import math

import numpy as np
import pytest
import torch
from ansatz_fixtures import *  # noqa: F403
from ansatz_networks import agop_by_patches, values
from torch import nn
from torch.nn.utils import parametrizations

from skconvrfm import AnsatzScorer
from skconvrfm.ansatz import LayerReport, baselines
from skconvrfm.ansatz.batches import measure_batches

STATISTICS = (
    *("correlation", "cosine", "correlation_no_trace"),
    *("eigenvalue_correlation", "eigenvector_overlap"),
)


class Odd(nn.Module):
    """Groups, dilation, strides, circular padding, transposed, and called twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, stride=2, padding=2, padding_mode="circular")
        self.norm = nn.BatchNorm2d(6)
        self.grouped = nn.Conv2d(6, 8, (2, 3), groups=2, dilation=(1, 2), padding=2)
        self.channelwise = nn.Conv2d(8, 8, 3, groups=8, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.points = nn.Conv2d(4, 5, 1)
        self.readout = nn.Linear(5, 3)

    def forward(self, x):
        x = self.norm(torch.tanh(self.first(x)))
        x = torch.tanh(self.channelwise(torch.tanh(self.grouped(x))))
        x = torch.tanh(self.twice(torch.tanh(self.twice(self.up(x)))))
        return self.readout(torch.relu(self.points(x)).mean((2, 3)))


KINDS = {
    **{"first": "full", "grouped": "grouped", "channelwise": "depthwise"},
    **{"up": "transposed", "twice": "full", "points": "pointwise"},
    "readout": "linear",
}


@pytest.fixture
def odd():
    torch.manual_seed(0)
    return Odd().double().eval()


@pytest.fixture
def x(rng):
    return torch.from_numpy(rng.normal(size=(8, 3, 7, 6)))


def filters_of(layer):
    groups = getattr(layer, "groups", 1)
    weight = layer.weight.detach().numpy()
    weight = weight.reshape(groups, len(weight) // groups, -1)
    return weight.mT if isinstance(layer, nn.ConvTranspose2d) else weight


def matrices(network, name, x, power):
    """Covariance and AGOP to a power, (groups, d, d), from patches one by one."""
    filters = filters_of(network.get_submodule(name))
    agop = agop_by_patches(network, [name], x).numpy()
    eigenvalues, vectors = np.linalg.eigh(agop)
    powers = (vectors * eigenvalues.clip(0)[:, None] ** power) @ vectors.mT
    return filters.mT @ filters, powers


def brute_force(covariance, agop, n_filters):
    pair = [covariance.ravel(), agop.ravel()]
    identity = np.broadcast_to(np.eye(covariance.shape[1]), covariance.shape).ravel()
    less = [one - one @ identity / identity.sum() * identity for one in pair]
    eigen = [np.linalg.eigh(one) for one in (covariance, agop)]
    rank = min(n_filters, covariance.shape[1])
    leading = [vectors[:, :, -math.ceil(rank / 10) :] for _, vectors in eigen]
    cosines = np.linalg.svd(leading[0].mT @ leading[1], compute_uv=False)
    return {
        "correlation": np.corrcoef(pair)[0, 1],
        "cosine": pair[0] @ pair[1] / np.prod(np.linalg.norm(pair, axis=1)),
        "correlation_no_trace": np.corrcoef(less)[0, 1],
        "eigenvalue_correlation": np.corrcoef([v.ravel() for v, _ in eigen])[0, 1],
        "eigenvector_overlap": np.mean(cosines**2),
    }


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_statistics_equal_those_of_matrices_patch_by_patch(odd, x, power):
    report = AnsatzScorer(layers="all+linear", agop_power=power).report(odd, x)
    assert {row.name: row.kind for row in report} == KINDS
    for row in report:
        filters = filters_of(odd.get_submodule(row.name))
        expected = brute_force(*matrices(odd, row.name, x, power), filters.shape[1])
        for name in STATISTICS:
            # A root of what is rounding is its root.
            tolerance = 1e-9 if power == 1 else 1e-6
            assert getattr(row, name) == pytest.approx(expected[name], abs=tolerance)
        found = report.matrices(row.name)
        for one, full in zip(found, matrices(odd, row.name, x, 1.0), strict=True):
            np.testing.assert_allclose(one, full, atol=1e-9 * np.abs(full).max())


def test_weak_layers_have_few_entries_or_one_filter_a_group(odd, x):
    weak = [row.name for row in AnsatzScorer().report(odd, x) if row.is_weak]
    assert weak == ["channelwise", "up", "points"]
    for kind, shape, groups, is_weak in (
        ("depthwise", (8, 1, 5, 5), 8, True),
        ("depthwise", (16, 1, 5, 5), 8, False),
        ("linear", (1, 30), 1, True),
        ("transposed", (20, 1, 1, 1), 1, True),
        ("transposed", (20, 2, 2, 2), 2, False),
    ):
        assert LayerReport("a", kind, shape, groups=groups).is_weak == is_weak


def test_matrices_of_one_filter_a_group_are_proportional(rng):
    network = nn.Sequential(nn.Conv2d(4, 4, 5, groups=4), nn.ReLU(), nn.Flatten())
    report = AnsatzScorer().report(network, rng.normal(size=(3, 7, 7, 4)))
    for covariance, agop in zip(*report.matrices("0"), strict=True):
        assert np.corrcoef(covariance.ravel(), agop.ravel())[0, 1] == pytest.approx(1)


def test_lift_is_over_the_mean_of_redrawn_networks(odd, x):
    scorer = AnsatzScorer(baseline="reinitialised", n_baselines=2)
    report = scorer.report(odd, x)
    rng = np.random.RandomState(0)
    rng.randint(2**31 - 1)  # the seed of directions comes first
    seeds = [int(rng.randint(2**31 - 1)) for _ in range(2)]
    others = baselines.reinitialised(odd, seeds)
    for other in others:
        baselines.estimate_statistics(other, [x])
    alone = [AnsatzScorer().report(other, x) for other in others]
    expected = np.mean([values(one) for one in alone], axis=0)
    np.testing.assert_allclose(values(report, "baseline"), expected, rtol=1e-9)
    np.testing.assert_allclose(
        values(report, "lift"), values(report) - expected, atol=1e-12
    )
    assert np.isnan(values(report, "drift")).all()
    # The spread of the seeds is a part of the error.
    seeds_error = np.std([values(one) for one in alone], axis=0)
    assert (values(report, "lift_standard_error") > seeds_error).all()


def test_error_of_the_lift_over_itself_is_zero(odd, x):
    """The same blocks of images are drawn for network and baseline."""
    report = AnsatzScorer(baseline=odd).report(odd, x)
    np.testing.assert_array_equal(values(report, "lift"), 0)
    np.testing.assert_array_equal(values(report, "lift_standard_error"), 0)
    assert (values(report, "standard_error")[:-1] > 0).all()


@pytest.mark.slow
def test_standard_error_of_a_lift_is_near_the_spread_of_samples(odd, rng):
    torch.manual_seed(1)
    other, lifts, errors = Odd().double().eval(), [], []
    for _ in range(30):
        x = torch.from_numpy(rng.normal(size=(20, 3, 7, 6)))
        row = AnsatzScorer(baseline=other, layers=["first"]).report(odd, x)[0]
        lifts.append(row.lift)
        errors.append(row.lift_standard_error)
    assert 0.6 < np.mean(errors) / np.std(lifts) < 1.6


def test_several_powers_are_those_of_single_reports(odd, x):
    options = {"layers": ["grouped", "up"], "baseline": "reinitialised"}
    options["n_baselines"] = 1
    both = AnsatzScorer(agop_power=(1.0, 0.5), **options).report(odd, x)
    for index, power in enumerate((1.0, 0.5)):
        single = AnsatzScorer(agop_power=power, **options).report(odd, x)
        for name in (*STATISTICS, "baseline", "lift", "lift_standard_error"):
            np.testing.assert_array_equal(
                values(both, name)[:, index], values(single, name)
            )
    with pytest.raises(ValueError, match=r"agop_power=\(1.0, 0.5\) has no one score"):
        AnsatzScorer(agop_power=(1.0, 0.5))(odd, x)


@pytest.mark.parametrize("power", [(), (1.0, 0.0), (1.0, "a"), [np.nan]])
def test_powers_that_are_no_positive_numbers_are_refused(power, odd, x):
    with pytest.raises(ValueError, match="agop_power=.* must be a positive number"):
        AnsatzScorer(agop_power=power).report(odd, x)


# ------------------------------------------------------------ weights drawn anew


def test_redrawn_networks_differ_and_the_network_stays(odd):
    before = {name: value.clone() for name, value in odd.state_dict().items()}
    first, second = baselines.reinitialised(odd, [1, 2])
    again, _ = baselines.reinitialised(odd, [1, 2])
    for name, value in odd.named_parameters():
        assert torch.equal(value, before[name])
        assert torch.equal(first.get_parameter(name), again.get_parameter(name))
        if not name.startswith("norm"):
            drawn = first.get_parameter(name), second.get_parameter(name)
            assert not torch.equal(*drawn) and not torch.equal(drawn[0], value)


def test_statistics_of_batch_norm_are_those_of_the_images(odd, x):
    [other] = baselines.reinitialised(odd, [1])
    baselines.estimate_statistics(other, [x])
    maps = torch.tanh(other.first(x)).movedim(1, -1).flatten(0, 2)
    torch.testing.assert_close(other.norm.running_mean, maps.mean(0))
    torch.testing.assert_close(other.norm.running_var, maps.var(0))
    assert not other.norm.training


@pytest.mark.parametrize("given", ["array", "iterator", "single images"])
def test_iterables_give_the_lifts_of_arrays(given, odd, x):
    scorer = AnsatzScorer(baseline="reinitialised", n_baselines=1, batch_size=12)
    forms = {
        "array": lambda: x,
        "iterator": lambda: iter(x.split(12)),
        "single images": lambda: (image for image in x),
    }
    expected = scorer.report(odd, x)
    found = scorer.report(odd, forms[given]())
    np.testing.assert_allclose(values(found, "lift"), values(expected, "lift"))


def test_parametrised_weights_are_drawn_as_they_are_used():
    layer = parametrizations.weight_norm(nn.Conv2d(2, 3, 3))
    network = nn.Sequential(layer, nn.Flatten(), nn.Linear(3, 2))
    before = layer.weight.clone()
    [other] = baselines.reinitialised(network, [0])
    assert torch.equal(layer.weight, before)
    assert not torch.equal(other[0].weight, layer.weight)
    assert not torch.equal(other[0].bias, layer.bias)
    bound = 1 / math.sqrt(18)
    assert other[0].weight.abs().max() <= bound


def test_parameters_that_no_module_draws_are_named(odd, x):
    odd.scale = nn.Parameter(torch.ones(1).double())
    with pytest.warns(UserWarning, match="keeps scale, which no module draws anew"):
        AnsatzScorer(baseline="reinitialised", n_baselines=1).report(odd, x)

    bare = nn.Sequential(nn.ReLU())
    bare.weight = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="finds no reset_parameters in the modules"):
        baselines.reinitialised(bare, [0])


# --------------------------------------------------------- outputs, time, Ctrl-C


def test_default_measures_64_directions_of_many_outputs(rng, images):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(100))
    network(torch.zeros(1, 3, 12, 10))
    report = AnsatzScorer().report(network, images)
    assert report.outputs == "64 random directions of 100 outputs"
    assert report.outputs in str(report)
    assert AnsatzScorer(outputs=64).report(network, images)[0].correlation == (
        report[0].correlation
    )
    assert AnsatzScorer(n_jobs=2).report(network, images).outputs == report.outputs
    exact = AnsatzScorer(outputs="all").report(network, images)
    assert exact.outputs == "all outputs"
    assert exact[0].correlation != report[0].correlation


def test_long_measurements_are_announced(odd, x, monkeypatch):
    expected = AnsatzScorer(layers="first").report(odd, x[:4])
    monkeypatch.setattr("skconvrfm.ansatz.scorer._MANY_PASSES", 0)
    monkeypatch.setattr("skconvrfm.ansatz.scorer._LONG_REPORT", 1e-9)
    text = r"will take about .* s: 4 images, 3 directions of outputs, networks: 2\."
    scorer = AnsatzScorer(layers="first", baseline=odd)
    with pytest.warns(UserWarning, match=text):
        report = scorer.report(odd, x[:4])
    # The trial leaves no trace.
    assert report[0].n_patches == expected[0].n_patches
    np.testing.assert_allclose(report[0].correlation, expected[0].correlation)


def test_interrupted_measurement_gives_what_is_done(odd, x):
    class Interrupted(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls = odd, 0

        def forward(self, images):
            self.calls += len(images) > 1
            if self.calls == 4:
                raise KeyboardInterrupt
            return self.inner(images)

    scorer = AnsatzScorer(batch_size=2)
    with pytest.warns(UserWarning, match="interrupted: the report is of 6 images"):
        report = scorer.report(Interrupted(), x)
    expected = scorer.report(odd, x[:6])
    np.testing.assert_array_equal(values(report), values(expected))
    assert report[0].n_images == 6 and report[0].n_patches == expected[0].n_patches
    with pytest.raises(KeyboardInterrupt):  # nothing is done
        measure_batches([Raising()], [x], 0, True)


class Raising:
    """A measurement that is interrupted in its first batch."""

    class sums:
        n_images = 0

        @staticmethod
        def snapshot():
            return Raising.sums

    def add(self, batch, number):
        raise KeyboardInterrupt
