"""Images in any form as batches that a network takes, and sums over all batches.

`ArrayBatches` and `IteratedBatches` have the same methods. A part, the batches of a
task, is (number of the first one, batches). Steps of the progress are batches if they
go in turn, and tasks if these are shared out; None if their number is not known.
"""

import itertools
import math
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from numbers import Integral

import numpy as np
import torch
from sklearn.utils.multiclass import type_of_target

from ..compute.blocks import image_blocks
from ..compute.images import to_tensor
from ..compute.parallel import SUM_TASKS, run_in_turn, spans, sum_tasks
from ..compute.sampling import systematic_sample
from .gradients import MAX_FOLDS, measure_batches

# Seconds after which a bar shows the progress.
LONG_RUN = 5.0


@dataclass
class _Blocks:
    """Batches of an array, each cast when and where a task needs it."""

    blocks: list
    dtype: torch.dtype
    device: torch.device

    def __iter__(self):
        wide = self.dtype in (torch.float64, torch.int64)
        exact = torch.float64 if wide else torch.float32
        for block in self.blocks:
            yield to_tensor(block, exact, self.device).to(self.dtype)


class ArrayBatches:
    """Batches of an array of images, laid out as the network takes them."""

    def __init__(self, X, dtype, device):
        self.X, self.dtype, self.device = X, dtype, device
        self.largest = -(-len(X) // MAX_FOLDS)  # of a batch, for the standard error

    def first(self):
        """Return the first image as a batch."""
        return next(iter(_Blocks([self.X[:1]], self.dtype, self.device)))

    def parts(self, size, resources):
        """Return the parts, and the number of steps."""
        blocks = [self.X[block] for block in image_blocks(self.X, size)]
        parts = [
            (span.start, _Blocks(blocks[span], self.dtype, self.device))
            for span in spans(len(blocks), resources, SUM_TASKS)
        ]
        return parts, len(blocks if resources.run is run_in_turn else parts)


class IteratedBatches:
    """Batches of an iterable, as they come; those larger than the size are split."""

    largest = math.inf

    def __init__(self, batches, dtype, device, max_images):
        self.given, self.dtype, self.device = batches, dtype, device
        self.max_images = max_images
        self._tensors = self._read()

    def first(self):
        """Return the first image as a batch."""
        first = next(self._tensors, None)
        if first is None:
            raise ValueError("X has no batches, or no images in them.")
        self._tensors = itertools.chain([first], self._tensors)
        return first[:1]

    def parts(self, size, resources):
        """Return the parts, and the number of steps."""
        known = hasattr(self.given, "__len__") and self.max_images is None
        n_steps = len(self.given) if known else None
        batches = (part for batch in self._tensors for part in batch.split(size))
        if resources.run is run_in_turn:
            return [(0, batches)], n_steps
        # One by one, as workers ask for them.
        return ((number, [batch]) for number, batch in enumerate(batches)), n_steps

    def _read(self):
        """Yield the images of each batch, up to `max_images` in all."""
        left = math.inf if self.max_images is None else self.max_images
        for images in map(_images_of, self.given):
            images = images[: min(left, len(images))]
            left -= len(images)
            if len(images):
                # Other integers may be tokens, which an embedding takes as they are.
                is_image = images.is_floating_point() or images.dtype == torch.uint8
                yield images.to(self.device, self.dtype if is_image else images.dtype)
            if not left:
                return


def is_iterable_of_batches(X):
    """Return True if X gives batches and is not an array itself."""
    if hasattr(X, "__array__") or hasattr(X, "dtypes"):
        return False
    if isinstance(X, (list, tuple)):
        while isinstance(X, (list, tuple)) and X:
            X = X[0]
        return isinstance(X, (torch.Tensor, dict))
    return isinstance(X, Iterable) and not isinstance(X, (str, bytes, dict))


def _images_of(batch):
    """The images of a batch: the first of a tuple, in a dict those of most axes."""
    if isinstance(batch, (tuple, list)) and batch:
        return _images_of(batch[0])
    values = batch.values() if isinstance(batch, dict) else [batch]
    tensors = [one for one in values if isinstance(one, torch.Tensor) and one.ndim]
    if tensors:
        return max(tensors, key=lambda tensor: tensor.ndim)
    raise TypeError(
        f"X has a batch of type {type(batch).__name__} without a tensor of images; "
        "batches are tensors, or tuples, lists or dicts with one."
    )


def lay_out(X, n_dims, image_shape, channels):
    """Return images as a view (n, channels, ...), or as they are if n_dims is None."""
    last = channels == "last"
    if image_shape is not None:
        X = _shape_rows(X, n_dims or 2, image_shape, channels)
    elif n_dims is None:
        return X
    elif X.ndim == n_dims + 1:
        X = np.expand_dims(X, -1 if last else 1)
    elif X.ndim != n_dims + 2:
        raise ValueError(
            f"X has shape {X.shape}; a network of Conv{n_dims}d takes (n, "
            f"{n_dims} axes of pixels, channels), or with channels='first' (n, "
            "channels, ...). Pass image_shape=(h, w, c) for flat rows."
        )
    return np.moveaxis(X, -1, 1) if last else X


def _shape_rows(X, n_dims, image_shape, channels):
    """Rows as images, their channels on the side that `channels` says."""
    shape = tuple(image_shape)
    positive = all(isinstance(size, Integral) and size > 0 for size in shape)
    if len(shape) not in (n_dims, n_dims + 1) or not positive:
        raise ValueError(
            f"image_shape={image_shape!r} must have {n_dims} sizes, or with "
            f"the channels {n_dims + 1}, all positive integers."
        )
    *sizes, n_channels = (*shape, 1)[: n_dims + 1]
    laid_out = (*sizes, n_channels) if channels == "last" else (n_channels, *sizes)
    fits = (laid_out, tuple(sizes)) if n_channels == 1 else (laid_out,)
    if X.ndim == 2 and X.shape[1] != math.prod(shape):
        raise ValueError(
            f"image_shape={image_shape!r} has {math.prod(shape)} pixels, but "
            f"X has {X.shape[1]} features a row; they must agree."
        )
    if X.ndim != 2 and X.shape[1:] not in fits:
        raise ValueError(
            f"image_shape={image_shape!r} with channels={channels!r} "
            f"does not match X, whose images have shape {X.shape[1:]}; leave "
            "image_shape=None to take it from X."
        )
    return X.reshape(len(X), *laid_out)


def draw_images(n, y, n_draws, rng):
    """Return the rows of an even draw over the classes of y, in ascending order."""
    strata = np.zeros(n)
    if np.shape(y) == (n,) and type_of_target(y) in ("binary", "multiclass"):
        strata = np.unique(y, return_inverse=True)[1]
    positions, weights = rng.uniform(size=n), np.ones(n)
    return systematic_sample(strata, positions, weights, n_draws, rng.uniform())[0]


def add_up(measured, images, size, resources, show_progress):
    """Return the sums over all batches, one per network, from all workers."""
    progress = _show_progress if show_progress else lambda steps, total: steps
    in_turn = resources.run is run_in_turn
    parts, n_steps = images.parts(size, resources)
    if in_turn:
        parts = ((first, progress(batches, n_steps)) for first, batches in parts)

    def run(function, tasks):
        results = resources.run(function, tasks)
        return results if in_turn else progress(results, n_steps)

    tasks = ((measured, batches, first, in_turn) for first, batches in parts)
    return sum_tasks(measure_batches, tasks, replace(resources, run=run))


def _show_progress(steps, total):
    """Pass steps on; if that is long, show a bar on a terminal (with rich)."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield from steps
        return
    console = Console(stderr=True)
    begin, bar = time.monotonic() + LONG_RUN, None
    with ExitStack() as stack:
        for done, step in enumerate(steps):
            if bar is None and console.is_terminal and time.monotonic() > begin:
                bar = stack.enter_context(Progress(console=console, transient=True))
                task = bar.add_task("Patch AGOPs", total=total)
            if bar is not None:
                bar.update(task, completed=done)
            yield step
