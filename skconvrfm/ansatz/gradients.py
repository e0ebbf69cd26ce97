"""Gradients at the outputs of a network's layers, summed to patch AGOPs by batch.

One backward pass serves all layers: see `skconvrfm.ansatz.layers` for the identity. The
sum over the outputs is taken output by output, or estimated without bias by random
directions v with E[v vᵀ] = I, for the gradient is linear in the direction.
"""

import copy
import functools
from dataclasses import KW_ONLY, dataclass, field

import numpy as np
import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional

from ..compute.blocks import balanced_blocks
from ..compute.torch_state import plain_torch
from ..compute.warn import warn_caller
from .layers import AnsatzSums
from .network import n_rows, run_network, take_rows, tensors_of

# Parts of the images whose spread gives the standard error; fewer if memory is short.
MAX_FOLDS = 10
# Images times directions of one backward pass on a GPU, enough to keep it busy.
GPU_PULLBACK_IMAGES = 256


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
        size = sum(8 * one.groups * one.moment_size**2 for one in self.layers)
        fits = max(2, self.memory // max(1, size))
        self.n_folds = max(1, min(self.max_folds, fits))

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
        moments, n = {}, n_rows(inputs)
        with plain_torch(), torch.enable_grad():
            for part in balanced_blocks(slice(0, n), self.largest or n):
                outputs, calls = self._call(take_rows(inputs, part))
                # Of the whole batch: they do not depend on the parts that it goes in.
                shape = n, outputs.shape[1]
                at_once = self.n_directions_at_once or self._at_once(outputs, calls)
                for directions, scale in self._directions(shape, number, at_once):
                    chosen = directions[:, part].to(outputs)
                    for layer, gradient in self._pull_back(outputs, calls, chosen):
                        moment = scale * layer.moment_of(gradient)
                        moments[layer] = moments.get(layer, 0) + moment
        for layer, moment in moments.items():
            layer.add(moment, number % self.n_folds)
        self.sums.n_images += n

    def _call(self, inputs):
        """Return the outputs, and for each call (layer, edge of its output, size)."""
        calls, is_cut, tensors = [], False, tensors_of(inputs)
        options = {"dtype": torch.float32, "device": tensors[0].device}
        anchor = torch.zeros((), requires_grad=True, **options)
        if not any(map(torch.is_floating_point, tensors)):
            # The graph cannot begin at the inputs; with the weights it begins early.
            for parameter in self.network.parameters():
                parameter.requires_grad_(parameter.is_floating_point())

        def observe(layer, weight, n_patches, output):
            nonlocal is_cut
            layer.note_call(weight, n_patches)
            self.sums.layers[layer.name] = layer.sums
            is_cut = is_cut or not torch.is_grad_enabled()
            # Also in networks that turn gradients off.
            with torch.inference_mode(False), torch.enable_grad():
                if not output.requires_grad:  # the graph begins here
                    output = output + anchor.to(output.dtype)
            # An edge of the graph stays when the network changes the output in place.
            calls.append((layer, get_gradient_edge(output), output.numel()))
            return output

        outputs = run_network(self.network, inputs, self.layers, observe)
        if is_cut and _has_node(outputs, "CheckpointFunctionBackward"):
            raise self._checkpointing_error()
        return outputs, calls

    def _checkpointing_error(self):
        return ValueError(
            f"{type(self.network).__name__} checkpoints its blocks in a way, such as "
            "use_reentrant=True, through which torch cannot take these gradients: "
            "switch checkpointing off for the measurement, or pass use_reentrant=False."
        )

    def _directions(self, shape, number, at_once):
        """Yield directions in chunks (m, n, n_outputs), each with its scale."""
        n, n_outputs = shape
        exact = self.outputs == "all" or self.outputs >= n_outputs
        total = n_outputs if exact else self.outputs
        rng = np.random.default_rng((self.seed, number))
        for start in range(0, total, at_once):
            chunk = torch.arange(start, min(start + at_once, total), device="cpu")
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
        passes = map(self._unless_checkpointed(grad), directions)
        if len(directions) > 1 and self.n_directions_at_once != 1:
            try:
                passes = [grad(directions, is_grads_batched=True)]
            except RuntimeError:
                # Some operation cannot be batched; one by one a real error recurs.
                self.n_directions_at_once = 1
        for gradients in passes:
            pairs = zip(layers, gradients, strict=True)
            yield from (pair for pair in pairs if pair[1] is not None)

    def _unless_checkpointed(self, grad):
        """Let errors of checkpointed blocks tell a remedy."""

        def take(direction):
            try:
                return grad(direction)
            except RuntimeError as error:
                if "checkpoint" not in f"{type(error).__name__} {error}".lower():
                    raise
                raise self._checkpointing_error() from error

        return take


def _has_node(outputs, name):
    """Return True if a node of that name is in the graph of the outputs."""
    seen, waiting = set(), [outputs.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == name:
            return True
        seen.add(node)
        waiting += (following for following, _ in node.next_functions)
    return False


def measure_batches(measurements, batches, first, in_turn):
    """Return the `AnsatzSums` of batches, numbered from `first`, by network."""
    if not in_turn:  # hooks of one task would see the calls of another
        measurements = copy.deepcopy(measurements)
    for number, batch in enumerate(batches, first):
        before = [measurement.sums.snapshot() for measurement in measurements]
        try:
            for measurement in measurements:
                measurement.add(batch, number)
        except KeyboardInterrupt:
            if not in_turn or number == first:
                raise
            for measurement, sums in zip(measurements, before, strict=True):
                measurement.set_sums(sums)
            warn_caller(f"interrupted: the report is of {before[0].n_images} images.")
            break
    return np.array([measurement.sums for measurement in measurements], dtype=object)
