"""The tables of accuracy run, and peers have one search for all seeds."""

import functools
import json

import numpy as np
import pytest
from bench_fixtures import *  # noqa: F403

from benchmarks import accuracy, linear, models, problems, rivals

KERNELS, KINDS = ("Linear", "Gaussian"), ("fixed", "learned")


@pytest.fixture
def small_problem(digits, monkeypatch):
    """Put a problem of 30 training images in place of the large ones."""
    load = problems._whole(digits.stem)
    monkeypatch.setattr(linear, "LARGE", {"MNIST, 5000": problems.Problem(load)})
    return digits.parent


@pytest.fixture
def quick_rivals(monkeypatch):
    """Make peers small, with pixels in place of scattering coefficients."""

    def quick(make):
        def rival(image_shape, _):
            made = make(image_shape, lambda images, J: images.reshape(len(images), -1))
            values = {"n_estimators": 5, "max_iter": 3, "epochs": 1, "width": 2}
            known = values.keys() & made.model.get_params(deep=False).keys()
            made.model.set_params(**{name: values[name] for name in known})
            return made

        return rival

    for name, make in rivals.RIVALS.items():
        monkeypatch.setitem(rivals.RIVALS, name, quick(make))


@pytest.mark.slow
@pytest.mark.parametrize("name", rivals.RIVALS)
def test_rivals_searched_once_and_fitted_per_seed(name, small_problem, quick_rivals):
    if name == "network":
        pytest.importorskip("skorch")
    data = problems._whole("digits")(small_problem, 0)
    runs = [run for _, run in linear._runs("", data, range(2), [name], None)]
    assert len(runs) == (1 if name in ("svc", "scattering") else 2)
    assert min(runs[0][key] for key in linear.TIMES) >= 0
    assert dict(runs[0]["chosen"]) in [parameters for parameters, _ in runs[0]["tried"]]
    assert "chosen" not in runs[-1] or len(runs) == 1
    json.dumps(runs)


@pytest.mark.parametrize("residual", [False, True])
def test_network_determined_by_seed(residual, digits):
    pytest.importorskip("skorch")
    X, y, *_ = problems._whole("digits")(digits.parent, 0)
    rows = X.reshape(len(X), -1)

    def weights(seed):
        options = {"residual": residual, "epochs": 2, "random_state": seed}
        net = rivals.ConvNet((6, 6, 1), width=16, **options).fit(rows, y)
        *_, weight, _ = net.net_.module_.parameters()
        return weight.detach().numpy()

    np.testing.assert_array_equal(weights(0), weights(0))
    assert np.abs(weights(0) - weights(1)).max() > 0


def test_search_on_few_images_holds_out_three_parts():
    rival = rivals.forest()
    assert rival.search(1000, 0).cv.get_n_splits() == 3
    assert rival.search(5000, 0).cv.get_n_splits() == 1


@pytest.mark.slow
def test_linear_table_runs_writes_and_merges(small_problem, tmp_path, capsys):
    first, second, both = (tmp_path / f"{name}.json" for name in "abc")
    problem = ["--problems", "MNIST, 5000", "--seeds", "2", "--data", small_problem]
    for only, path in (("ours", first), ("svc", second)):
        options = ["--linear", *problem, "--only", only, "--json", path]
        accuracy.main([str(option) for option in options])
    capsys.readouterr()
    options = ["--linear", "--merge", first, second, "--json", both]
    accuracy.main([str(option) for option in [*options, "--data", small_problem]])
    printed = capsys.readouterr().out
    assert "ConvFeatures + Gaussian, learned" in printed
    assert "svc__gamma" in printed
    merged = json.loads(both.read_text())["linear"]["MNIST, 5000"]
    runs = {label: len(runs) for label, runs in merged.items()}
    ours = [f"ConvFeatures + {k}, {kind}" for k in KERNELS for kind in KINDS]
    assert runs == {**dict.fromkeys(ours, 2), "pixels + RBF SVC": 1}


@pytest.mark.slow
def test_small_table_runs(digits, monkeypatch, capsys):
    load = functools.partial(problems.draw, digits.name, n_train=30, n_test=10)
    monkeypatch.setattr(accuracy, "SMALL", {"Fashion-MNIST, 30": load})
    accuracy.main(["--data", str(digits.parent), "--seeds", "1", "--rounds", "1"])
    table = capsys.readouterr().out
    for label in (
        "fixed kernel",
        "Deep ConvRFM, 3 layers, identity",
        "PatchAGOP + SVC",
    ):
        assert label in table
    for kind in KINDS:
        assert f"ConvFeatures + Gaussian, {kind}" in table


def test_deep_convrfm_as_published():
    model = models.deep_convrfm(3, 16, "identity", bias=0.3, n_rounds=2)
    assert model.kernel.get_params()["depth"] == 1
    assert len(model.features) == 2
    layer = model.features[0]
    assert (layer.filters, layer.metric, layer.pool_grid) == (
        "gaussian",
        "identity",
        None,
    )
    assert layer.bias == layer.threshold == 0 and layer.patch_size == 3


def test_merge_takes_later_results(tmp_path):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, value in zip(paths, (1, 2), strict=True):
        path.write_text(json.dumps({"linear": {"digits": {"ours": [value]}}}))
    assert linear.merge(paths) == {"digits": {"ours": [2]}}


@pytest.mark.parametrize("name", problems.LARGE)
def test_problem_sizes(name, shared):
    problem, folder = problems.LARGE[name], shared / "data"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    X_train, y_train, X_test, y_test = problem.load(folder, 0)
    assert len(X_train) == len(y_train) == int(name.split()[-1])
    assert len(X_test) == len(y_test) == (1000 if problem.redrawn else 2000)
    assert X_train.dtype == X_test.dtype == np.float32
