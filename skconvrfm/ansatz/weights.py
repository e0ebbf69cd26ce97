"""Weights for a network in the files that training scripts write."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from .._command_line import UsageError

# Keys of training scripts, which are looked into before any others.
KEYS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network"),
    *("module", "weights", "params"),
)
# Parts of the names of weights that torch.compile and nn.DataParallel put in.
_WRAPPERS = ((), ("_orig_mod",), ("_orig_mod", "module"))
_DEEPEST = 4  # keys above the weights


def load_weights(network, path, name):
    """Load a file into a network of that name; return the keys that were left out."""
    content = read_file(path)
    tried = []
    for where, state in _states(content):
        tried.append(where or "the top level")
        matched = _match(network, state, path)
        if matched is None:
            continue
        weights, left_out = matched
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise _not_those(path, name, " ".join(str(error).split())[:200]) from error
        return left_out
    if not tried:
        found = f"holds a {type(content).__name__} without tensors by name"
        raise UsageError(f"--weights {path}: {found}, not a state dict")
    wanted = next((one for one in network.state_dict() if one not in state), "")
    raise _not_those(
        path,
        name,
        f"tried {', '.join(tried)}, with and without prefixes; the last of these has "
        f"names such as {next(iter(state))}, but not {wanted}",
    )


def _not_those(path, name, reason):
    return UsageError(f"--weights {path}: are not those of {name} ({reason})")


def read_file(path):
    """Return what is in a file of torch.save, np.savez or safetensors."""
    suffix = Path(path).suffix
    try:
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays}
        if suffix == ".safetensors":
            return _read_safetensors(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"--weights {path}: {error.strerror or error}") from error
    except Exception as error:  # of many kinds, from pickle and zip alike
        reason = _reason(str(error))
        raise UsageError(
            f"--weights {path}: cannot be read as weights ({reason}); write them with "
            "torch.save(network.state_dict(), file)"
        ) from error


def _reason(message):
    """A line on why torch could not read a file."""
    if "TorchScript" in message:
        return "it is a scripted network"
    _, is_pickle, rest = message.partition("Unsupported global: GLOBAL ")
    if is_pickle:
        return f"it has pickled objects, of {rest.split()[0]}, not only weights"
    return message.partition("\n")[0]


def _read_safetensors(path):
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise UsageError(
            f"--weights {path}: needs safetensors; pip install safetensors, or pass "
            "a file of torch.save"
        ) from error
    return load_file(path, device="cpu")


def _states(content, where="", depth=0):
    """Yield (key, tensors by name) for each state dict in what was read."""
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return
    names = {name for name in content if isinstance(name, str)}
    tensors = {
        name: content[name] for name in names if isinstance(content[name], torch.Tensor)
    }
    if tensors:
        yield where, {name: content[name] for name in content if name in tensors}
    for name in sorted(names - tensors.keys(), key=_rank):
        inner = f"{where}.{name}" if where else name
        yield from _states(content[name], inner, depth + 1)


def _rank(name):
    return (KEYS.index(name), "") if name in KEYS else (len(KEYS), name)


def _match(network, state, path):
    """Weights of a state dict by the names of the network, and the keys left out.

    None if the state dict has not all of them, under any prefix.
    """
    wanted = [n for n in network.state_dict() if not n.endswith("num_batches_tracked")]
    if not wanted:
        return None
    # Of a network in a wrapper, such as a module of Lightning, whose weights are bare.
    first = {name.partition(".")[0] for name in wanted}
    for wrapper in (*_WRAPPERS, first) if len(first) == 1 else _WRAPPERS:
        renamed = {_without(wrapper, name): name for name in state}
        own = {_without(wrapper, name): name for name in network.state_dict()}
        needed = [_without(wrapper, name) for name in wanted]
        prefixes = sorted(
            {
                name.removesuffix(needed[0])
                for name in renamed
                if name == needed[0] or name.endswith("." + needed[0])
            },
            key=lambda prefix: (len(prefix), prefix),
        )
        fitting = [p for p in prefixes if all(p + name in renamed for name in needed)]
        if "" in fitting:
            fitting = [""]
        if len(fitting) > 1:
            raise UsageError(
                f"--weights {path}: has weights for the network under each of "
                f"{', '.join(fitting)}; save those of one of them alone"
            )
        for prefix in fitting:
            inside = [name for name in renamed if name.startswith(prefix)]
            weights = {
                own.get(name.removeprefix(prefix), name): state[renamed[name]]
                for name in inside
            }
            return weights, [renamed[name] for name in renamed if name not in inside]
    return None


def _without(parts, name):
    """The name of a weight without some parts of it."""
    return ".".join(part for part in name.split(".") if part not in parts)
