"""Groups and bandwidths are compared on rows that come in tracks, and on others."""

import numpy as np
import pytest

from benchmarks import bandwidths, tracks
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import Gaussian
from skconvrfm.learning import rounds

LAYER = ConvFeatures(4, patch_size=3)


@pytest.fixture
def folder(tmp_path, rng):
    X, y = rng.integers(0, 256, size=(60, 28, 28)).astype(np.uint8), np.arange(60) % 3
    for name in bandwidths.FILES.values():
        np.savez(tmp_path / name, X_train=X, y_train=y, X_test=X[:9], y_test=y[:9])
    return tmp_path


def test_tracks_are_fitted_with_and_without_groups(folder, monkeypatch, capsys):
    monkeypatch.setattr(tracks, "MACHINES", {"Gaussian": (Gaussian(), LAYER)})
    options = "--draws", "2", "--objects", "12", "--views", "3"
    path = folder / "mnist_5000_2000.npz"
    assert tracks.main(["--data", str(path), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [line for line in lines if line.split()[:1] == ["Gaussian"]]
    assert len(found) == 2 * len(tracks.VARIANTS)


def test_bandwidths_are_multiples_of_the_median(folder, capsys):
    before = rounds.MULTIPLES
    options = ["--folder", str(folder), "--images", "20", "--filters", "4"]
    assert bandwidths.main(options) == 0
    assert rounds.MULTIPLES == before
    table = capsys.readouterr().out.splitlines()[-10:]
    assert all("(1.00)" in row for row in table if " Gaussian " in row)
