"""The comparison has equal rows and budgets for all models, and resumes."""

import json

import numpy as np
import pytest
from bench_fixtures import *  # noqa: F403
from sklearn.dummy import DummyClassifier
from sklearn.model_selection import ParameterGrid, StratifiedShuffleSplit
from sklearn.neighbors import KNeighborsClassifier

from benchmarks import comparison, harness, problems, rivals
from benchmarks.peers import client

needs_xrfm = pytest.mark.skipif(
    client.python_of(comparison.XRFM) is None,
    reason="xRFM's environment is built by python -m benchmarks.comparison",
)
SHAPES = {"digits": (28, 28, 1), "framed": (42, 42, 1), "colours": (32, 32, 3)}


@pytest.fixture
def blobs(rng):
    """Return rows and labels of two parts: 3 and 7, which differ in every pixel."""

    def part(n):
        y = np.repeat([3, 7], n // 2)
        X = rng.random((n, 36)) / 2 + (y == 7)[:, None] / 2
        return X.astype(np.float32), y

    return (*part(40), *part(20))


@pytest.fixture
def drawn(blobs, monkeypatch):
    """Put two small problems in place of the real ones."""

    def load(folder, draw, n_train, n_test):
        shift = np.float32(draw / 100)
        X_train, y_train, X_test, y_test = blobs
        train, test = (X.reshape(-1, 6, 6) + shift for X in (X_train, X_test))
        return train, y_train, test, y_test

    monkeypatch.setattr(comparison, "DRAWN", {"one": load, "two": load})


@pytest.fixture
def rows(monkeypatch):
    """Put two quick models in place of the real rows."""
    models = {
        "neighbours": (KNeighborsClassifier(), {"n_neighbors": [30, 1, 2, 3]}),
        "nothing": (DummyClassifier(), {"strategy": ["prior", "most_frequent"]}),
    }

    def make(name):
        return lambda *_: rivals.Rival(name, *models[name])

    monkeypatch.setattr(comparison, "ROWS", {name: make(name) for name in models})


@pytest.fixture
def run(tmp_path, drawn, rows):
    """Run the command on the two problems and return the records."""

    def run(*more):
        options = ["--data", tmp_path, "--results", tmp_path / "results.jsonl"]
        options += ["--problems", "one", "two", "--only", "neighbours", "nothing"]
        options += ["--n-train", 40, "--n-test", 20, "--draws", 2, *more]
        comparison.main([str(option) for option in options])
        lines = (tmp_path / "results.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return run


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", comparison.ROWS)
def test_equal_number_of_candidates(name, shape):
    row = comparison.make_row(name, shape, str, str)
    candidates = list(ParameterGrid(row.grid))
    budget = 1 if name == "default" else comparison.BUDGET
    assert len(candidates) == len(set(map(str, candidates))) == budget
    for candidate in candidates:
        row.seeded(0, **candidate)
    search = row.search(500, seed=0)
    assert search.cv.get_n_splits() == 1
    assert search.n_jobs is None


@pytest.mark.parametrize("name", comparison.ROWS)
def test_no_model_takes_more_than_one_worker(name):
    parameters = comparison.make_row(name, (28, 28, 1), str, str).model.get_params()
    assert {parameters[key] for key in parameters if key.endswith("n_jobs")} <= {None}


def test_fixed_and_learned_differ_in_rounds_alone():
    for kernel in ("layers", "ntk"):
        fixed, learned = (
            comparison.make_row(f"{kernel}-{kind}", (28, 28, 1), None, None)
            for kind in ("fixed", "learned")
        )
        assert str(fixed.grid) == str(learned.grid)
        assert fixed.model.n_rounds == 0
        parameters = learned.model.get_params() | {"n_rounds": 0}
        assert str(fixed.model.get_params()) == str(parameters)


def test_first_draw_searched_for_all_draws(run, blobs):
    records = [record for record in run() if record["row"] == "neighbours"]
    searches = [record for record in records if record["draw"] is None]
    assert len(searches) == 2  # one a problem
    X, y, X_test, y_test = blobs
    parts = StratifiedShuffleSplit(1, test_size=0.2, random_state=0)
    kept, held_out = next(parts.split(X, y))
    for candidate, score in searches[0]["tried"]:
        model = KNeighborsClassifier(**candidate).fit(X[kept], y[kept])
        assert model.score(X[held_out], y[held_out]) == score
    best = max(score for _, score in searches[0]["tried"])
    assert (searches[0]["chosen"], best) in map(tuple, searches[0]["tried"])
    fits = [record for record in records if record["draw"] is not None]
    model = KNeighborsClassifier(**searches[0]["chosen"]).fit(X, y)
    expected = model.score(X_test, y_test)
    assert [record["accuracy"] for record in fits] == [expected] * 4
    assert sorted(record["draw"] for record in fits) == [0, 0, 1, 1]


def test_finished_measurements_not_repeated(run, monkeypatch):
    first = run("--draws", 1)
    assert len(first) == 2 * 2 * 2  # problems, rows, a search and a fit
    both = run()
    assert both[: len(first)] == first
    assert len(both) == len(first) + 2 * 2

    def fail(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(comparison, "fit_and_score", fail)
    monkeypatch.setattr(comparison, "search_grid", fail)
    assert run() == both
    assert run("--draws", 3, "--tables") == both


def test_results_of_other_settings_kept(run, capsys):
    first = run("--n-test", 10)
    capsys.readouterr()
    records = run()
    assert len(records) == 2 * len(first)
    assert records[: len(first)] == first


def test_tables_ordered_by_accuracy(run, tmp_path, capsys):
    page, picture = tmp_path / "tables.txt", tmp_path / "picture.png"
    run("--page", page, "--figure", picture)
    printed = capsys.readouterr().out
    tables = page.read_text()
    assert all(table in printed for table in tables.strip().split("\n\n"))
    lines = tables.splitlines()
    assert [line.split()[0] for line in lines[3:5]] == ["neighbours", "nothing"]
    assert lines[3].split()[1:5] == ["100.0", "%", "100.0", "100.0"]
    assert lines[4].split()[1:5] == ["50.0", "%", "50.0", "50.0"]
    assert "n_neighbors=" in tables
    assert "xrfm==" in printed
    assert "threads: " in printed
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_names_in_figure_do_not_overlap():
    figure = pytest.importorskip("matplotlib.figure").Figure(figsize=(5, 4))
    panel = figure.subplots()
    points = {"a long name": (1, 1), "another name": (1.2, 1), "a third": (1.1, 1.02)}
    panel.plot(*zip(*points.values(), strict=True), "o")
    panel.set(xlim=(0, 2), ylim=(0.8, 1.2))
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in comparison.name_points(panel, points)]
    for index, box in enumerate(boxes):
        assert box.count_overlaps(boxes[:index]) == 0
        places = panel.transData.transform(list(points.values()))
        assert not any(box.contains(*place) for place in places)


def test_seconds_averaged_over_draws():
    def record(draw, **values):
        return ("digits", "svc", draw), values

    def fit(seconds, accuracy):
        times = {"fit_cpu_seconds": seconds, "predict_cpu_seconds": 2 * seconds}
        return {"accuracy": accuracy, "fit_seconds": 3 * seconds, **times}

    records = dict(
        [
            record(None, search_cpu_seconds=7.0),
            record(1, **fit(3.0, 0.9)),
            record(0, **fit(1.0, 0.8)),
        ]
    )
    (row,) = comparison.summarize(records, "digits")
    assert row["accuracies"] == [0.8, 0.9]
    assert [row[key] for key in ("search", "fit", "predict", "wall")] == [7, 2, 4, 6]


def test_missing_data_folder_named(capsys):
    with pytest.raises(SystemExit):
        comparison.main(["--data", "/nowhere"])
    assert "/nowhere is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", problems.DRAWN)
def test_draws_seeded_and_sized(name, shared):
    folder = shared / "data"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    first, again, other = (
        problems.DRAWN[name](folder, seed, 30, 20) for seed in (0, 0, 1)
    )
    assert [len(array) for array in first] == [30, 30, 20, 20]
    assert first[0].dtype == np.float32
    for ours, theirs in zip(first, again, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (first[1] != other[1]).any()


# ------------------------------------------------------------------------ xRFM


def test_xrfm_encodes_labels(blobs):
    X, y, *_ = blobs
    asked = []

    def compute(arrays, **request):
        asked.append((arrays, request))
        return 1 if request["task"] == "fit" else np.array([0, 1, 1])

    model = rivals.RecursiveFeatureMachine(compute, bandwidth=5, diag=True, reg=0.1)
    assert model.fit(X, y).best_round_ == 1
    np.testing.assert_array_equal(model.predict(X[:3]), [3, 7, 7])
    arrays, request = asked[0]
    np.testing.assert_array_equal(arrays["y"], y == 7)
    assert request["model"]["bandwidth"] == 5
    assert request["model"]["diag"] is True
    assert request["fit"] == {"reg": 0.1}
    json.dumps(request)


@pytest.fixture(scope="module")
def compute():
    with comparison.peers(["xrfm"]) as (_, compute):
        yield compute


@pytest.mark.slow
@needs_xrfm
@pytest.mark.parametrize("standardize", [False, True])
def test_xrfm_learns(compute, blobs, standardize):
    X, y, X_test, y_test = blobs
    X[:, 0] = X_test[:, 0] = 0  # no deviation
    model = rivals.RecursiveFeatureMachine(
        compute, bandwidth_mode="adaptive", standardize=standardize
    )
    assert model.fit(X, y).score(X_test, y_test) == 1
    assert 0 <= model.best_round_ <= model.rounds


# ------------------------------------------------------------------- the network


@pytest.mark.parametrize(
    ("flags", "halves"), [({"avx2"}, False), ({"avx512_bf16"}, True)]
)
def test_network_in_bfloat16_only_where_native(flags, halves, monkeypatch):
    monkeypatch.setattr(rivals, "processor_flags", lambda: flags)
    layers = rivals.conv_layers((6, 6, 1), n_classes=2, width=2)
    assert isinstance(layers, rivals.HalfPrecision) == halves


def test_processor_flags_from_cpuinfo():
    words = harness.Path("/proc/cpuinfo").read_text().split()
    assert harness.processor_flags() <= set(words)
