"""The peer of the benchmarks: the same kernel and AGOP with neural-tangents.

Runs in its own virtual environment (``neural_tangents_requirements.txt`` lists it) and
imports nothing of skconvrfm. It is a worker: it reads one request a line (JSON) from
the standard input and answers one line (JSON) each, until the input ends. So imports
and compilation are paid once, however often a case is repeated::

    echo '{"task": "kernel", "input": "in.npz", "output": "out.npz", "depth": 3}' \
        | python neural_tangents_peer.py

A request names

- ``task``: "kernel", "agop" or "info" (only "info" needs no files),
- ``input``: an .npz file with ``images`` (n, h, w, c), for an AGOP also ``dual_coef``
  (n, n_classes) and ``points`` (m, h, w, c), and optionally ``patch_transform`` (d, d),
- ``output``: the .npz file to write, with the one array ``result``,
- optionally ``depth`` and ``patch_size``, and what tunes the speed: ``block_size``,
  ``n_threads`` and, for an AGOP, ``block_points`` and ``class_map``.

The answer holds ``seconds`` (of a warm run) and ``compile_seconds`` (how much longer
the first run of a shape took; 0 when the shape had been run before).

The network: patches become channels, so that the first layer is a 1x1 convolution that
can measure them in any metric; deeper layers are ordinary convolutions. The standard
deviations of the weights turn the peer's averages into the sums of skconvrfm: its first
layer divides by the number of channels of the image instead of the length of a patch,
its convolutions add over the window instead of averaging, and its ReLU preserves the
variance instead of halving it.
"""

import functools
import json
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
from neural_tangents import stax


def extract_patches(images, patch_size):
    """Return all patches of images as channels.

    Parameters
    ----------
    images : ndarray of shape (n, h, w, c)
        Images.

    patch_size : int
        Rows and columns of a patch.

    Returns
    -------
    patches : ndarray of shape (n, h - patch_size + 1, w - patch_size + 1, d)
        The entries of a patch run (channel, row, column).
    """
    windows = np.lib.stride_tricks.sliding_window_view(
        images, (patch_size, patch_size), axis=(1, 2)
    )
    return windows.reshape(*windows.shape[:3], -1)


@functools.cache
def make_kernel_fn(depth, patch_size, n_channels):
    """Return the neural tangent kernel, a function of two blocks of patches."""
    gain = (2 * patch_size**2) ** 0.5
    layers = [stax.Conv(1, (1, 1), W_std=(patch_size**2) ** 0.5), stax.Relu()]
    for _ in range(depth - 1):
        layers += [
            stax.Conv(1, (patch_size, patch_size), padding="VALID", W_std=gain),
            stax.Relu(),
        ]
    layers += [stax.Flatten(), stax.Dense(1, W_std=2**0.5)]
    kernel_fn = stax.serial(*layers)[2]
    return functools.partial(kernel_fn, get="ntk", diagonal_spatial=True)
