"""Gradients at the outputs of a network's layers, summed to patch AGOPs by batch.

One backward pass serves all layers: see `skconvrfm.ansatz.layers` for the identity. The
sum over the outputs is taken output by output, or estimated without bias by random
directions v with E[v vᵀ] = I, for the gradient is linear in the direction.
"""

import copy
import functools
import math
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass, field

import numpy as np
import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from ..compute.blocks import image_blocks
from .layers import AnsatzSums, second_moment

# Parts of the images whose spread gives the standard error; fewer if memory is short.
MAX_FOLDS = 10
# Images times directions of one backward pass on a GPU, enough to keep it busy.
GPU_PULLBACK_IMAGES = 256

_LINEAR_MAPS = (torch.conv1d, torch.conv2d, torch.conv3d, functional.linear)


@contextmanager
def frozen(network, device=None):
    """Hold a network in evaluation mode without gradients, then put everything back.

    Yields the device that it is moved to. Each mode, flag and buffer is put back, also
    if another fails. ``train()`` is not called: in some modules it does more than that.
    """
    kind, modules = type(network).__name__, list(network.modules())
    tensors = [*network.parameters(), *network.buffers()]
    if any(map(is_lazy, tensors)):
        message = "has lazy layers without weights: call it on a batch first."
        raise ValueError(f"{kind} {message}")
    # Their flags could not be put back.
    if any(parameter.is_inference() for parameter in network.parameters()):
        made = "parameters made under torch.inference_mode"
        raise ValueError(f"{kind} has {made}: make it outside, or copy them.")
    home = tensors[0].device if tensors else torch.device("cpu")
    with ExitStack() as stack:  # undone in reverse order: the device first
        for module in modules:
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    stack.callback(_put_back, module, name, buffer, buffer.clone())
        for parameter in network.parameters():
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        for module in modules:
            stack.callback(setattr, module, "training", module.training)
            module.training = False
        if device is not None and device != home:
            stack.callback(_move, network, home)
            _move(network, device)
        yield device or home


def _put_back(module, name, buffer, content):
    """Give a module a buffer back, with the content that it had."""
    module._buffers[name] = buffer
    if not torch.equal(buffer, content):
        with torch.no_grad():
            buffer.copy_(content)


def _move(network, device):
    # Parameters that are moved under inference mode could not be differentiated.
    with torch.inference_mode(False):
        network.to(device)


class OutputError(ValueError):
    """The output of a network does not have one row per image."""


class _WeightsInUse(TorchFunctionMode):
    """Record the weight of the last linear map; a standardised one is no parameter."""

    weight = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _LINEAR_MAPS:
            self.weight = args[1] if len(args) > 1 else kwargs["weight"]
        return func(*args, **kwargs)


def run_network(network, inputs, layers, observe):
    """Call a network on a batch, and return its outputs as (n, n_outputs).

    After each call of a layer, ``observe(layer, weight that it used, output)`` returns
    another output or None.
    """
    with ExitStack() as stack:
        in_use = stack.enter_context(_WeightsInUse())

        def forget(module, args):
            in_use.weight = None

        def after(layer, module, args, output):
            weight = in_use.weight
            if weight is None or weight.shape != layer.sums.weight.shape:
                weight = module.weight
            return observe(layer, weight, output)

        for layer in layers:
            for module in layer.modules:
                # The output of the layer itself, before the user's hooks.
                hook = module.register_forward_hook(
                    lambda *call, layer=layer: after(layer, *call), prepend=True
                )
                stack.callback(hook.remove)
                stack.callback(module.register_forward_pre_hook(forget).remove)
        outputs = _first_tensor(network(inputs))
    if outputs is None or outputs.ndim == 0 or len(outputs) != len(inputs):
        found = "no tensor" if outputs is None else f"shape {tuple(outputs.shape)}"
        raise OutputError(
            f"The network's output for {len(inputs)} images has {found}; it must be "
            "(n_images, ...): wrap the network in a module that returns that."
        )
    return outputs.reshape(len(outputs), -1)


def _first_tensor(outputs):
    """The logits among the values that a network returns, or the first tensor."""
    if isinstance(outputs, torch.Tensor):
        return outputs
    if isinstance(getattr(outputs, "logits", None), torch.Tensor):
        return outputs.logits
    if isinstance(outputs, dict):
        outputs = [outputs["logits"]] if "logits" in outputs else list(outputs.values())
    if isinstance(outputs, (tuple, list)):
        found = map(_first_tensor, outputs)
        return next((value for value in found if value is not None), None)
    return None


@dataclass(eq=False)
class AnsatzMeasurement:
    """Patch AGOPs of the layers of a network, summed batch by batch."""

    network: nn.Module  # frozen while batches are added
    layers: list  # of MeasuredLayer
    _: KW_ONLY
    outputs: int | str = "all"  # or random directions, if these are fewer
    seed: int = 0  # of the directions
    memory: int = 2**30  # bytes for gradients of one pass, and for sums that are kept
    largest: int | None = None  # images at once; larger batches go in parts
    max_folds: int = MAX_FOLDS  # parts of the batches, for the standard error
    # None is 1 on a CPU, which gains nothing from more; on a GPU what fits the memory.
    n_directions_at_once: int | None = None
    sums: AnsatzSums = field(default_factory=lambda: AnsatzSums(0, {}))

    def __post_init__(self):
        size = sum(8 * one.groups * min(one.matrix_sizes) ** 2 for one in self.layers)
        fits = max(2, self.memory // max(1, size))
        self._n_folds = max(1, min(self.max_folds, fits))

    def in_forward_order(self):
        """Return the layers as they are first called, those never called last."""
        by_name = {layer.name: layer for layer in self.layers}
        return [by_name[name] for name in {**self.sums.layers, **by_name}]

    def set_sums(self, sums):
        """Replace the sums by those of batches that others added."""
        self.sums = sums
        for layer in self.layers:
            layer.sums = sums.layers.get(layer.name, layer.sums)

    def add(self, inputs, number):
        """Add a batch; its number decides its fold and its random directions."""
        # The sums of this batch first: that of a layer may be larger than its AGOP.
        moments = {}
        with torch.inference_mode(False), torch.enable_grad():
            for part in image_blocks(inputs, self.largest or len(inputs)):
                outputs, calls = self._call(inputs[part])
                # Of the whole batch: they do not depend on the parts that it goes in.
                shape = len(inputs), outputs.shape[1]
                at_once = self.n_directions_at_once or self._at_once(outputs, calls)
                for directions, scale in self._directions(shape, number, at_once):
                    chosen = directions[:, part].to(outputs)
                    for layer, gradient in self._pull_back(outputs, calls, chosen):
                        # Channels second, locations third, of linear layers just one.
                        sizes = gradient.shape[gradient.ndim - 1 - layer.n_dims :]
                        rows = gradient.reshape(-1, sizes[0], math.prod(sizes[1:]))
                        moment = scale * second_moment(rows, layer.groups)
                        moments[layer] = moments.get(layer, 0) + moment
        for layer, moment in moments.items():
            layer.add(moment, number % self._n_folds)
        self.sums.n_images += len(inputs)

    def _call(self, inputs):
        """Return the outputs, and for each call (layer, edge of its output, size)."""
        calls = []
        anchor = torch.zeros((), requires_grad=True, device=inputs.device)

        def observe(layer, weight, output):
            layer.note_call(weight, output.numel() // len(weight))
            self.sums.layers[layer.name] = layer.sums
            with torch.enable_grad():  # also in networks that turn gradients off
                if not output.requires_grad:  # the first layers: the graph begins here
                    output = output + anchor.to(output.dtype)
            # An edge of the graph stays when the network changes the output in place.
            calls.append((layer, get_gradient_edge(output), output.numel()))
            return output

        if inputs.is_inference():  # autograd could not keep them
            inputs = inputs.clone()
        return run_network(self.network, inputs, self.layers, observe), calls

    def _directions(self, shape, number, at_once):
        """Yield directions in chunks (m, n, n_outputs), each with its scale."""
        n, n_outputs = shape
        exact = self.outputs == "all" or self.outputs >= n_outputs
        total = n_outputs if exact else self.outputs
        rng = np.random.default_rng((self.seed, number))
        for start in range(0, total, at_once):
            chunk = torch.arange(start, min(start + at_once, total))
            shape = len(chunk), n, n_outputs
            if exact:
                yield functional.one_hot(chunk, n_outputs)[:, None].expand(shape), 1.0
            else:  # signs, which have the smallest variance
                signs = torch.from_numpy(rng.integers(0, 2, size=shape, dtype=np.int8))
                yield 2.0 * signs - 1, 1 / total

    def _at_once(self, outputs, calls):
        """Number of directions of one backward pass."""
        if outputs.device.type == "cpu":
            return 1
        size = outputs.element_size() * sum(n_elements for _, _, n_elements in calls)
        fits = self.memory // (2 * max(1, size))  # a gradient, and its copy in a sum
        return max(1, min(fits, GPU_PULLBACK_IMAGES // len(outputs)))

    def _pull_back(self, outputs, calls, directions):
        """Yield (layer, gradient of ``directions · outputs`` at a call)."""
        if not calls or not outputs.requires_grad:
            return
        # An image's output depends on no other image: one pass serves a batch.
        layers, edges, _ = zip(*calls, strict=True)
        options = {"retain_graph": True, "allow_unused": True}
        grad = functools.partial(torch.autograd.grad, outputs, edges, **options)
        passes = map(grad, directions)
        if len(directions) > 1 and self.n_directions_at_once != 1:
            try:
                passes = [grad(directions, is_grads_batched=True)]
            except RuntimeError:
                # Some operation cannot be batched; one by one a real error recurs.
                self.n_directions_at_once = 1
        for gradients in passes:
            pairs = zip(layers, gradients, strict=True)
            yield from (pair for pair in pairs if pair[1] is not None)


def measure_batches(measurements, batches, first, in_turn):
    """Return the `AnsatzSums` of batches, numbered from `first`, by network."""
    if not in_turn:  # hooks of one task would see the calls of another
        measurements = copy.deepcopy(measurements)
    for number, batch in enumerate(batches, first):
        for measurement in measurements:
            measurement.add(batch, number)
    return np.array([measurement.sums for measurement in measurements], dtype=object)
