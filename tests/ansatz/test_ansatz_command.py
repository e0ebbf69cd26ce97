"""``skconvrfm ansatz`` measures networks, and reports errors in one line."""

import csv
import math
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import networks
from skconvrfm.__main__ import main
from skconvrfm._command_line import UsageError
from skconvrfm.ansatz import AnsatzScorer
from skconvrfm.ansatz.weights import load_weights

ROOT = Path(__file__).parents[2]


@pytest.fixture
def archive(tmp_path, rng):
    """Return the path of an archive of small colour images."""
    path = tmp_path / "images.npz"
    np.savez(path, X=rng.integers(0, 256, size=(6, 14, 14, 3), dtype=np.uint8))
    return path


NETWORK = "benchmarks.networks:mobilenet"


def run_main(capsys, *arguments):
    """Exit code, output and errors of the command line."""
    code = main(["ansatz", *(str(argument) for argument in arguments)])
    return code, *capsys.readouterr()


@pytest.mark.slow
def test_command_runs_without_a_warning(archive):
    command = [sys.executable, "-W", "error", "-m", "skconvrfm", "ansatz", NETWORK]
    done = subprocess.run(
        [*command, "--images", str(archive)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Pearson correlation of filter covariance")
    assert "features.3" in done.stdout


def test_command_loads_weights_and_writes_a_table(archive, tmp_path, capsys):
    network = networks.mobilenet()
    weights, table = tmp_path / "weights.npz", tmp_path / "table.csv"
    state = network.state_dict()
    np.savez(weights, **{name: value.numpy() for name, value in state.items()})
    options = ["--weights", weights, "--csv", table, "--outputs", "all"]
    options += ["--images", archive, "--agop-power", ".5"]
    code, _, err = run_main(capsys, NETWORK, *options)
    assert (code, err) == (0, "")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with np.load(archive) as data:
        X = data["X"] / np.float32(255)
    expected = AnsatzScorer(agop_power=0.5).report(network, X)
    for row, found in zip(expected, rows, strict=True):
        assert row.name == found["name"]
        assert float(found["correlation"]) == pytest.approx(row.correlation)
        assert math.isfinite(float(found["baseline"]))


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


CHECKPOINTS = {
    **{
        key: lambda state, key=key: {key: state, "epoch": 3}
        for key in (
            *("state_dict", "model", "model_state_dict", "model_state", "net"),
            *("network", "weights", "params", "module", "ema", "state_dict_ema"),
        )
    },
    "bare": lambda state: state,
    "data parallel": lambda state: prefixed(state, "module."),
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "combined": lambda state: {"model": prefixed(state, "module._orig_mod.net.")},
    "compiled part": lambda state: {
        name.replace("features.", "features._orig_mod."): value
        for name, value in state.items()
    },
    "with optimizer": lambda state: {
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []},
        "training": {"model": state},
    },
}


@pytest.mark.parametrize("form", CHECKPOINTS)
def test_weights_found_in_checkpoints(form, tmp_path):
    torch.manual_seed(5)
    state = networks.mobilenet().state_dict()
    torch.save(CHECKPOINTS[form](state), tmp_path / "weights.pt")
    network = networks.mobilenet()
    assert load_weights(network, tmp_path / "weights.pt", "mobilenet") == []
    assert_same_state(network, state)


def assert_same_state(network, state):
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name])


def test_weights_of_lightning_name_what_is_left_out(archive, tmp_path, capsys):
    path = tmp_path / "epoch=3.ckpt"
    state = prefixed(networks.mobilenet().state_dict(), "model.")
    torch.save({"state_dict": state | {"loss.weight": torch.ones(2)}}, path)
    code, _, err = run_main(capsys, NETWORK, "--images", archive, "--weights", path)
    assert code == 0
    assert err == f"--weights {path}: left out loss.weight\n"


def test_weights_of_a_bare_network_fit_one_in_a_wrapper(tmp_path):
    state = networks.mobilenet().state_dict()
    torch.save(state, tmp_path / "weights.pt")
    wrapper = nn.ModuleDict({"model": networks.mobilenet()})
    load_weights(wrapper, tmp_path / "weights.pt", "wrapper")
    assert_same_state(wrapper.model, state)


def test_weights_of_safetensors(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UsageError, match="needs safetensors; pip install"):
        load_weights(networks.mobilenet(), path, "mobilenet")
    state = networks.mobilenet().state_dict()
    module = types.SimpleNamespace(load_file=lambda path, device: state)
    monkeypatch.setitem(sys.modules, "safetensors", types.ModuleType("safetensors"))
    monkeypatch.setitem(sys.modules, "safetensors.torch", module)
    assert load_weights(networks.mobilenet(), path, "mobilenet") == []


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_unusable_weights_refused_with_the_cause(tmp_path):
    network = networks.mobilenet()
    state, path = network.state_dict(), tmp_path / "weights.pt"
    twice = prefixed(state, "student.") | prefixed(state, "teacher.")
    for content, message in (
        (network, "has pickled objects, of benchmarks.networks.MobileNet"),
        ({"state_dict": twice}, "under each of student., teacher.; save those of one"),
        (state | {"features.99.weight": torch.ones(1)}, "Unexpected.*features.99"),
        ({"ema": {"conv": torch.ones(1)}}, "tried ema.*but not features.0"),
        ({"epoch": 3}, "holds a dict without tensors by name"),
        ([state], "holds a list without tensors by name"),
    ):
        torch.save(content, path)
        with pytest.raises(UsageError, match=message):
            load_weights(network, path, "mobilenet")
    torch.jit.script(nn.Sequential(nn.ReLU())).save(path)
    with pytest.raises(UsageError, match="it is a scripted network"):
        load_weights(network, path, "mobilenet")


def test_command_reads_folders_of_images(tmp_path, capsys, rng):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "deep").mkdir()
    for number, folder in enumerate((tmp_path, tmp_path, tmp_path / "deep")):
        pixels = rng.integers(0, 256, size=(20 + number, 24, 3), dtype=np.uint8)
        image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no image")
    code, _, err = run_main(capsys, NETWORK, "--images", tmp_path)
    assert code == 2
    assert "different sizes" in err and "--size N" in err
    code, out, _ = run_main(capsys, NETWORK, "--images", tmp_path, "--size", 16)
    assert code == 0


def fake_torchvision(monkeypatch, weights=None):
    """Put something in the place of torchvision that has one network."""

    class Weights:
        url = "https://example.org/weights.pth"

        def transforms(self):
            return lambda image: image[:, 2:14, 2:14].float() / 255

        def get_state_dict(self, **options):
            if weights is None:
                raise OSError("no route to host")
            return weights

    module = types.ModuleType("torchvision")
    module.models = types.SimpleNamespace(
        list_models=lambda module=None: ["tinynet"],
        get_model=lambda name, weights=None: networks.mobilenet(),
        get_model_weights=lambda name: types.SimpleNamespace(DEFAULT=Weights()),
    )
    monkeypatch.setitem(sys.modules, "torchvision", module)


def test_command_takes_names_weights_and_transforms_of_torchvision(
    archive, capsys, monkeypatch
):
    torch.manual_seed(3)
    network = networks.mobilenet()
    fake_torchvision(monkeypatch, network.state_dict())
    code, out, err = run_main(
        capsys, "tinynet", "--images", archive, "--weights", "DEFAULT"
    )
    assert (code, err) == (0, "")
    with np.load(archive) as data:
        X = data["X"][:, 2:14, 2:14] / np.float32(255)
    (row, *_) = AnsatzScorer(outputs=64).report(network, X)
    assert f"{row.correlation:.3f} ± " in out


def test_command_reports_errors_in_one_line(archive, tmp_path, capsys, monkeypatch):
    empty, other = tmp_path / "empty", tmp_path / "other.npz"
    empty.mkdir()
    np.savez(other, images=np.zeros((2, 3)))
    wrong = tmp_path / "wrong.pt"
    torch.save(networks.alexnet(width=2).state_dict(), wrong)
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"nothing")
    for arguments, message in (
        ([NETWORK], "required: --images"),
        ([NETWORK, "--images", empty], "has no image files"),
        ([NETWORK, "--images", tmp_path / "none.npz"], "No such file"),
        ([NETWORK, "--images", broken], "neither a folder nor an .npz file"),
        ([NETWORK, "--images", other], "has none of X, X_test, X_train; it has images"),
        ([NETWORK, "--images", archive, "--size", "9"], "--size is for folders"),
        ([NETWORK, "--images", archive, "--outputs", "no"], "--outputs: needs an int"),
        ([NETWORK, "--images", archive, "--agop-power", "0"], "needs a positive"),
        ([NETWORK, "--images", archive, "--device", "tpu7"], "device='tpu7'"),
        ([NETWORK, "--images", archive, "--csv", empty], "--csv"),
        ([NETWORK, "--images", archive, "--weights", wrong], "are not those of"),
        ([NETWORK, "--images", archive, "--weights", broken], "cannot be read as weig"),
        ([NETWORK, "--images", archive, "--weights", empty / "x"], "No such file"),
        ([NETWORK, "--images", archive, "--weights", "DEFAULT"], "only for names of t"),
        (["no.such:thing", "--images", archive], "No module named 'no'"),
        (["math:tau", "--images", archive], "math has no function 'tau'"),
        (["builtins:dict", "--images", archive], "returns a dict, not a torch.nn.Mod"),
    ):
        code, out, err = run_main(capsys, *arguments)
        assert (code, err.count("\n")) == (2, 1), err
        assert err.startswith("skconvrfm: error: ")
        assert message in err


@pytest.mark.parametrize(
    ("torchvision", "arguments", "message"),
    [
        ("missing", ["resnet18"], "not installed; pip install torchvision, or pass p"),
        ("broken", ["resnet18"], "cannot be imported (operator does not exist)"),
        ("fake", ["resnet18"], "near are tinynet"),
        ("fake", ["tinynet", "--weights", "DEFAULT"], "elsewhere and pass --weights F"),
    ],
)
def test_command_names_missing_or_broken_torchvision(
    torchvision, arguments, message, archive, capsys, monkeypatch
):
    if torchvision == "fake":
        fake_torchvision(monkeypatch)
    else:
        monkeypatch.setitem(sys.modules, "torchvision", None)
    if torchvision == "broken":
        monkeypatch.delitem(sys.modules, "torchvision")
        monkeypatch.setattr(sys, "meta_path", [BrokenFinder(), *sys.meta_path])
    code, _, err = run_main(capsys, *arguments, "--images", archive)
    assert (code, err.count("\n")) == (2, 1), err
    assert message in err


class BrokenFinder:
    """Finds a torchvision that was built for another torch."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            raise RuntimeError("operator does not exist\nand more")
        return None


def test_command_names_missing_pillow(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    code, _, err = run_main(capsys, NETWORK, "--images", tmp_path)
    assert code == 2
    assert "pip install pillow, or pass an .npz file" in err
