"""A network while it is measured: held fixed, called on batches, left as it was found.

A batch is a tensor, a dict that the network takes as it is, or `Keywords`.
"""

import copy
import random
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import fields, is_dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from ..compute.torch_state import plain_torch

_LINEAR_MAPS = (
    *(torch.conv1d, torch.conv2d, torch.conv3d, functional.linear),
    *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
)
_HALF = {torch.float16, torch.bfloat16}
# Attributes in which every module keeps parameters, buffers, hooks and its mode, and
# those in which recurrent layers keep their weights once more.
_STATE = (*vars(nn.Module()), "_flat_weights", "_flat_weight_refs")
# Hooks are not for compiled code; before torch 2.6 there is no such setting.
_set_stance = getattr(torch.compiler, "set_stance", lambda stance: nullcontext())


class Keywords(dict):
    """A batch whose tensors a network takes by the names of its parameters."""


@contextmanager
def frozen(network, device=None):
    """Hold a network in evaluation mode, then leave it as it was found.

    Yields the device that it is on. In the meantime it has other parameters and
    buffers, so that nothing happens to its own. The parameters share their memory,
    unless they are moved; half precision becomes float32, in which gradients neither
    vanish nor overflow.
    """
    tensors = [*network.parameters(), *network.buffers()]
    if any(map(is_lazy, tensors)):
        message = "has lazy layers without weights: call it on a batch first."
        raise ValueError(f"{type(network).__name__} {message}")
    home = tensors[0].device if tensors else torch.device("cpu")
    dtypes = {parameter.dtype for parameter in network.parameters()}
    scripted, modules = [], []
    for module in network.modules():
        is_script = isinstance(module, torch.jit.ScriptModule)
        (scripted if is_script else modules).append(module)
    with ExitStack() as stack, torch.inference_mode(False):
        for module in modules:
            stack.callback(_put_back, module, _state_of(module))
        for module in scripted:  # their tensors cannot be exchanged
            stack.callback(setattr, module, "training", module.training)
            for parameter in module.parameters(recurse=False):
                stack.callback(parameter.requires_grad_, parameter.requires_grad)
        stand_ins = {}
        for module in modules:
            for own in (module._parameters, module._buffers):
                for name, tensor in own.items():
                    if tensor is not None and id(tensor) not in stand_ins:
                        stand_ins[id(tensor)] = _stand_in(tensor)
                    own[name] = stand_ins.get(id(tensor))
        for module in (*modules, *scripted):
            module.training = False
        moves = device is not None and device != home
        wide = {one for one in dtypes if one.is_complex or one == torch.float64}
        widens = dtypes & _HALF and not wide and not scripted
        if moves and scripted:
            stack.callback(lambda: [module.to(home) for module in scripted])
        if moves or widens or any(tensor.is_inference() for tensor in tensors):
            network.to(device=device, dtype=torch.float32 if widens else None)
        yield device or home


def _stand_in(tensor):
    """A tensor in place of a parameter, sharing its memory, or of a buffer."""
    # Of a tensor made in inference mode only copies can be part of a graph.
    if not isinstance(tensor, nn.Parameter):
        return tensor.detach().clone()
    own = tensor.clone() if tensor.is_inference() else tensor.detach()
    return nn.Parameter(own, requires_grad=False)


def _state_of(module):
    """The state of a module by attribute, each with a copy of what it contains."""
    own = vars(module)
    return {k: (own[k], copy.copy(own[k])) for k in _STATE if k in own}


def _put_back(module, state):
    """Give a module its state back, in the containers that it had."""
    own = vars(module)
    for name, (value, content) in state.items():
        if isinstance(value, (dict, set)):
            value.clear()
            value.update(content)
        own[name] = value
    for name in (*module._parameters, *module._buffers, *module._modules):
        own.pop(name, None)  # set in place of what was deleted, it would hide it


@contextmanager
def left_alone():
    """Compute outside of the caller's autocast and modes, and move no random state."""
    cuda = torch.cuda.device_count() if torch.cuda.is_initialized() else 0
    states = np.random.get_state(), random.getstate()  # noqa: NPY002
    with plain_torch(), torch.random.fork_rng(range(cuda)):
        try:
            yield
        finally:
            np.random.set_state(states[0])  # noqa: NPY002
            random.setstate(states[1])


def default_device(device):
    """Return a context in which a default device that was set is another one."""
    name = torch.device(device).type
    is_set = torch.get_default_device().type not in ("cpu", name)
    return torch.device(device) if is_set else nullcontext()


class OutputError(ValueError):
    """The output of a network does not have one row per image."""


class _Calls(TorchFunctionMode):
    """Record the weight of the last linear map; a standardised one is no parameter.

    A network that turns autocast on is computed in its own precision nevertheless.
    """

    weight = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _LINEAR_MAPS:
            self.weight = args[1] if len(args) > 1 else kwargs["weight"]
        if not any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            with torch.autocast("cuda", enabled=False):
                return func(*args, **kwargs)


def run_network(network, inputs, layers, observe):
    """Call a network on a batch, and return its outputs as (n, n_outputs).

    After each call of a layer, ``observe(layer, weight that it used, number of patches,
    output)`` returns another output or None.
    """
    with ExitStack() as stack:
        stack.enter_context(_set_stance("force_eager"))
        stack.enter_context(default_device(tensors_of(inputs)[0].device))
        calls = stack.enter_context(_Calls())

        def forget(module, args):
            calls.weight = None

        def after(layer, module, args, kwargs, output):
            weight = calls.weight
            if weight is None or weight.shape != layer.sums.weight.shape:
                weight = module.weight
            # The first axis of a weight is that of its input if it is transposed.
            [maps, *_] = args or kwargs.values()
            side = maps if layer.kind == "transposed" else output
            return observe(layer, weight, side.numel() // len(weight), output)

        for layer in layers:
            for module in layer.modules:
                # The output of the layer itself, before the user's hooks.
                hook = module.register_forward_hook(
                    lambda *call, layer=layer: after(layer, *call),
                    prepend=True,
                    with_kwargs=True,
                )
                stack.callback(hook.remove)
                stack.callback(module.register_forward_pre_hook(forget).remove)
        n, inputs = n_rows(inputs), _copied(inputs)
        by_name = isinstance(inputs, Keywords)
        outputs = network(**inputs) if by_name else network(inputs)
    outputs = _first_tensor(outputs)
    if outputs is None or outputs.ndim == 0 or len(outputs) != n:
        found = "no tensor" if outputs is None else f"shape {tuple(outputs.shape)}"
        raise OutputError(
            f"The network's output for {n} images has {found}; it must be "
            "(n_images, ...): wrap the network in a module that returns that."
        )
    return outputs.reshape(n, -1)


def n_rows(batch):
    """Return the number of images of a batch, or of a dict of arrays."""
    return len(next(iter(batch.values())) if isinstance(batch, Mapping) else batch)


def take_rows(batch, rows):
    """Return some rows of a batch, or of a dict of arrays."""
    if isinstance(batch, Mapping):
        return type(batch)({name: values[rows] for name, values in batch.items()})
    return batch[rows]


def tensors_of(batch):
    """Return the tensors of a batch."""
    return list(batch.values()) if isinstance(batch, Mapping) else [batch]


def _copied(inputs):
    """A copy of a batch that the network may change, and at which a graph begins.

    So the graph is the same inside and outside of checkpointed blocks.
    """
    if isinstance(inputs, Mapping):
        return type(inputs)({name: _copied(one) for name, one in inputs.items()})
    inputs = inputs.clone() if inputs.is_inference() else inputs.detach()
    return inputs.requires_grad_(inputs.is_floating_point()).clone()


def _first_tensor(outputs):
    """The logits among the values that a network returns, or the first real tensor."""
    found = list(_tensors(outputs))
    with_rows = [one for one in found if one.ndim]
    real = [one for one in with_rows if one.is_floating_point()]
    return next(iter(real or with_rows or found), None)


def _tensors(outputs):
    """Yield the tensors among the values that a network returns, logits first."""
    if isinstance(outputs, torch.Tensor):
        yield torch.view_as_real(outputs) if outputs.is_complex() else outputs
        return
    values, logits = (), getattr(outputs, "logits", None)
    if isinstance(outputs, Mapping):
        values, logits = outputs.values(), outputs.get("logits")
    elif isinstance(outputs, (tuple, list)):
        values = outputs
    elif is_dataclass(outputs):
        values = [getattr(outputs, field.name) for field in fields(outputs)]
    for value in (*[logits] * (logits is not None), *values):
        yield from _tensors(value)
