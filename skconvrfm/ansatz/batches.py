"""Images in any form as batches that a network takes, and sums over all batches.

`ArrayBatches` and `IteratedBatches` have the same methods. A part, the batches of a
task, is (number of the first one, batches). Steps of the progress are batches if they
go in turn, and tasks if these are shared out; None if their number is not known.
"""

import copy
import itertools
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from sklearn.utils.multiclass import type_of_target

from .._input import as_numpy
from ..compute.blocks import balanced_blocks
from ..compute.parallel import SUM_TASKS, run_in_turn, spans, sum_tasks
from ..compute.progress import follow
from ..compute.sampling import systematic_sample
from .gradients import MAX_FOLDS, measure_batches
from .inputs import (
    Items,
    check_images,
    is_array,
    keyword_readings,
    single_readings,
    split_labels,
    stack,
)
from .network import default_device, n_rows, take_rows

# Images of a batch where single images come one by one, and nobody knows how many.
STREAMED_IMAGES = 8
_STEPS = "patch AGOPs"  # what a bar shows the progress of


class _Blocks:
    """Batches of images that are at hand, each made when and where a task needs it."""

    def __init__(self, blocks, reading):
        self.blocks, self.reading = blocks, reading

    def __iter__(self):
        return map(self.reading.inputs, self.blocks)


class ArrayBatches:
    """Batches of images whose number is known: an array, a dict of arrays or items."""

    def __init__(self, X, reading):
        self.X, self.reading = X, reading
        self.n_images = n_rows(X)
        self.largest = -(-self.n_images // MAX_FOLDS)  # for the standard error

    def first(self):
        """Return the first image as a batch."""
        return self.reading.inputs(take_rows(self.X, slice(0, 1)))

    def sample(self, n_images, size):
        """Yield batches of so many of the images, evenly over all."""
        n = min(n_images, self.n_images)
        rows = np.linspace(0, self.n_images - 1, n).round().astype(int)
        for cut in balanced_blocks(slice(0, n), size):
            yield self.reading.inputs(take_rows(self.X, rows[cut]))

    def remedy(self):
        """Return how the images are read, for errors."""
        return self.reading.remedy(take_rows(self.X, slice(0, 1)))

    def parts(self, size, resources):
        """Return the parts, and the number of steps."""
        cuts = balanced_blocks(slice(0, self.n_images), size)
        blocks = [take_rows(self.X, cut) for cut in cuts]
        parts = [
            (span.start, _Blocks(blocks[span], self.reading))
            for span in spans(len(blocks), resources, SUM_TASKS)
        ]
        return parts, len(blocks if resources.run is run_in_turn else parts)


class IteratedBatches:
    """Batches of an iterable, as they come; those larger than the size are split.

    Or its single images, which are put together, as many as give a standard error.
    """

    def __init__(self, elements, reading, like, max_images, n_elements=None):
        self.elements, self.reading = elements, reading
        self.like, self.max_images = like, max_images  # a single image, or None
        self.n_images = max_images  # None is not known
        is_single = like is not None
        known = not is_single and max_images is None
        self.n_steps = n_elements if known else None
        self.largest = STREAMED_IMAGES if is_single else math.inf

    def first(self):
        """Return the first image as a batch."""
        return self.reading.inputs(self._first())

    def sample(self, n_images, size):
        """Yield batches of the first images, which come again later."""
        taken, n = [], 0
        for element in self.elements:
            taken.append(element)
            is_single = self.like is not None
            n += 1 if is_single else n_rows(split_labels(element)[0])
            if n >= n_images:
                break
        self.elements.put_back(taken)
        seen = copy.copy(self)
        seen.elements, seen.max_images = taken, min(n_images, self.n_images or n)
        yield from map(self.reading.inputs, seen._cut(size))

    def remedy(self):
        """Return how the images are read, for errors."""
        return self.reading.remedy(self._first())

    def _first(self):
        if self.like is not None:
            return stack([self.like], [0], self.like)
        return take_rows(split_labels(self.elements.peek())[0], slice(1))

    def parts(self, size, resources):
        """Return the parts, and the number of steps."""
        batches = map(self.reading.inputs, self._cut(size))
        if resources.run is run_in_turn:
            return [(0, batches)], self.n_steps
        # One by one, as workers ask for them.
        return ((number, [one]) for number, one in enumerate(batches)), self.n_steps

    def _cut(self, size):
        """Yield batches of at most that size, up to `max_images` in all."""
        left = math.inf if self.max_images is None else self.max_images
        for images in self._put_together(size):
            n = min(left, n_rows(images))
            left -= n
            for start in range(0, n, size):
                yield take_rows(images, slice(start, min(n, start + size)))
            if not left:
                return

    def _put_together(self, size):
        images = (split_labels(element)[0] for element in self.elements)
        if self.like is None:
            yield from images
            return
        begin = 0
        while group := list(itertools.islice(images, size)):
            yield stack(group, range(begin, begin + len(group)), self.like)
            begin += len(group)


class Peekable:
    """Iterator whose first element can be seen before it is taken."""

    def __init__(self, elements):
        self.elements = iter(elements)

    def __iter__(self):
        return self

    def __next__(self):
        with default_device("cpu"):  # as loaders need it
            return next(self.elements)

    def put_back(self, elements):
        """Let elements that were taken come again."""
        self.elements = itertools.chain(elements, self.elements)

    def peek(self):
        """Return the first element."""
        for first in self:
            self.put_back([first])
            return first
        raise ValueError("X has no batches, or no images in them.")


def open_images(X, y, network, reading, max_images, rng):
    """Return the images as batches, in each way that they may be meant.

    The likeliest comes first; that which the network takes is right.
    """

    def drawn(images):
        n = n_rows(images)
        if max_images is None or max_images >= n:
            return images
        return take_rows(images, draw_images(n, y, max_images, rng))

    X = _without_labels(X)
    if isinstance(X, torch.Tensor) and reading.image_shape is not None:
        X = as_numpy(X, "X")
    if isinstance(X, Mapping):
        X, _ = split_labels(X)
        if len({len(array) for array in X.values()}) > 1:
            shapes = {name: tuple(array.shape) for name, array in X.items()}
            raise ValueError(f"X has arrays of {shapes}: they must have equal lengths.")
        readings = keyword_readings(network, X)
        return [ArrayBatches(drawn(X), replace(reading, keywords=k)) for k in readings]
    if not isinstance(X, torch.Tensor) and not _has_elements(X):
        X = check_images(X)
        reading.laid_out(X)  # the whole of it is in the errors
    if is_array(X):
        return [ArrayBatches(drawn(X), reading)]
    n = len(X) if hasattr(X, "__len__") else None
    by_index = n is not None and hasattr(X, "__getitem__")
    given = map(X.__getitem__, range(n)) if by_index else _lazily(X)
    elements = Peekable(one for one in given if n_rows(split_labels(one)[0]))
    images, labels = split_labels(elements.peek())
    is_dataset = by_index and not isinstance(X, (list, tuple))
    ways = []
    for is_single in single_readings(images, labels, reading.n_dims, is_dataset):
        for keywords in keyword_readings(network, images):
            read = replace(reading, keywords=keywords)
            if is_single and by_index:
                way = ArrayBatches(drawn(Items(X, np.arange(n), images)), read)
            else:
                like = images if is_single else None
                way = IteratedBatches(elements, read, like, max_images, n)
            ways.append(way)
    return ways


def _lazily(X):
    """Yield from an iterable whose iteration begins with the first element."""
    yield from X


def _without_labels(X):
    """Return the images of a pair of all images and all labels."""
    if not isinstance(X, (list, tuple)) or len(X) != 2 or not all(map(is_array, X)):
        return X
    images, labels = X
    axes = getattr(images, "ndim", 0), getattr(labels, "ndim", 0)
    has_labels = axes[0] >= 2 and (axes[1] == 1 or 0 < axes[1] <= axes[0] - 2)
    return images if has_labels and len(images) == len(labels) else X


def _has_elements(X):
    """Return True if X gives images or batches, and is not an array itself."""
    if is_array(X) or hasattr(X, "dtypes"):
        return False
    if isinstance(X, (list, tuple)):
        while isinstance(X, (list, tuple)) and X:
            X = X[0]
        return is_array(X) or isinstance(X, Mapping)
    is_iterable = hasattr(X, "__iter__") or hasattr(X, "__getitem__")
    return is_iterable and not isinstance(X, (str, bytes))


def draw_images(n, y, n_draws, rng):
    """Return the rows of an even draw over the classes of y, in ascending order."""
    strata = np.zeros(n)
    if np.shape(y) == (n,) and type_of_target(y) in ("binary", "multiclass"):
        strata = np.unique(y, return_inverse=True)[1]
    positions, weights = rng.uniform(size=n), np.ones(n)
    return systematic_sample(strata, positions, weights, n_draws, rng.uniform())[0]


def add_up(measured, images, size, resources):
    """Return the sums over all batches, one per network, from all workers."""
    in_turn = resources.run is run_in_turn
    parts, n_steps = images.parts(size, resources)
    if in_turn:
        parts = ((first, follow(batches, _STEPS, n_steps)) for first, batches in parts)

    def run(function, tasks):
        results = resources.run(function, tasks)
        return results if in_turn else follow(results, _STEPS, n_steps)

    tasks = ((measured, batches, first, in_turn) for first, batches in parts)
    return sum_tasks(measure_batches, tasks, replace(resources, run=run))
