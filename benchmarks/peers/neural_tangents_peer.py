"""The same kernel and AGOP with neural-tangents.

Patches become channels, so that the first layer is a 1×1 convolution and can measure
them in any metric; deeper layers are ordinary convolutions. The standard deviations of
the weights turn the averages of neural-tangents into the sums of skconvrfm: the first
layer divides by the channels of the image and not by the length of a patch, the others
add over the window, and each ReLU preserves the variance.

What is chosen here was the fastest of what was tried on two cores: sizes of blocks,
threads, ``vmap`` of classes, and a readout that is compiled apart from the layers, as
XLA would fuse the last ReLU into it and evaluate each arc tangent twice.
"""

import functools
import itertools
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from neural_tangents import stax

BLOCK_SIZE = 25  # images on either side of a block of the kernel; centres of the AGOP
BLOCK_POINTS = 2  # of the AGOP
N_THREADS = 2  # blocks that are computed at the same time; XLA has threads besides


def patches(images, size):
    """Return patches as channels, whose entries run (channel, row, column)."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (size, size), (1, 2))
    return windows.reshape(*windows.shape[:3], -1)


@functools.cache
def network(depth, size):
    """Return the layers up to the last ReLU, and the readout."""
    first = stax.Conv(1, (1, 1), W_std=size)
    deeper = stax.Conv(1, (size, size), padding="VALID", W_std=2**0.5 * size)
    layers = [first, stax.Relu()] + [deeper, stax.Relu()] * (depth - 1)
    readout = [stax.Flatten(), stax.Dense(1, W_std=2**0.5)]
    return stax.serial(*layers), stax.serial(*readout)


@functools.cache
def compiled_kernel(depth, size):
    """Return the neural tangent kernel of two blocks of patches."""
    layers, readout = (part[2] for part in network(depth, size))
    layers = jax.jit(functools.partial(layers, diagonal_spatial=True))
    readout = jax.jit(functools.partial(readout, get="ntk"))
    return lambda left, right: readout(layers(left, right))


@functools.cache
def compiled_gradients(depth, size):
    """Return the gradients at points by a block of centres, for all classes."""
    kernel = stax.serial(*network(depth, size))[2]

    def gradients(centres, dual_coef, points):
        values = functools.partial(kernel, centres, get="ntk")
        _, pull_back = jax.vjp(values, points)
        shape = (len(centres), len(points))

        def of_class(coef):
            return pull_back(jnp.broadcast_to(coef[:, None], shape))[0]

        return jax.vmap(of_class)(dual_coef.T)

    return jax.jit(gradients)


# The sum of outer products over classes, points and locations.
outer_products = jax.jit(lambda g: jnp.einsum("omhwd,omhwe->de", g, g))


def split(array, size):
    """Return consecutive blocks of at most ``size`` rows."""
    return [array[start : start + size] for start in range(0, len(array), size)]


def compute_kernel(shape, images, block_size=BLOCK_SIZE):
    """Return the training kernel: blocks of the upper triangle, mirrored."""
    kernel, result = compiled_kernel(*shape), np.empty(2 * [len(images)], np.float32)
    blocks = split(np.arange(len(images)), block_size)

    def compute(pair):
        rows, columns = (np.s_[block[0] : block[-1] + 1] for block in pair)
        values = np.asarray(kernel(images[rows], images[columns]))
        result[rows, columns], result[columns, rows] = values, values.T

    with ThreadPoolExecutor(N_THREADS) as pool:
        list(pool.map(compute, itertools.combinations_with_replacement(blocks, 2)))
    return result


def compute_agop(shape, images, dual_coef, points, block_size=BLOCK_SIZE):
    """Return the patch AGOP: one vector-Jacobian product a block, for all classes."""
    gradients = compiled_gradients(*shape)
    centres, coefs = (split(array, block_size) for array in (images, dual_coef))

    def compute(points):
        blocks = zip(centres, coefs, strict=True)
        total = sum(gradients(block, coef, points) for block, coef in blocks)
        return np.asarray(outer_products(total))

    with ThreadPoolExecutor(N_THREADS) as pool:
        return sum(pool.map(compute, split(points, BLOCK_POINTS))) / len(points)


def answer(input, output, task, depth, patch_size, **sizes):
    """Save the kernel or the AGOP, and return times; the first call compiles.

    Patches are cut before the clock starts, which stops at a numpy array.
    """
    with np.load(input) as archive:
        arrays = dict(archive)
    for name in {"images", "points"} & arrays.keys():
        arrays[name] = jnp.asarray(patches(np.float32(arrays[name]), patch_size))
    compute = {"kernel": compute_kernel, "agop": compute_agop}[task]
    wall, cpu = time.perf_counter(), time.process_time()
    result = compute((depth, patch_size), **arrays, **sizes)
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    np.savez(output, result=result)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds}


if __name__ == "__main__":
    # Nothing but answers may go to the standard output, whatever libraries print.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        print(json.dumps(answer(**json.loads(line))), file=answers, flush=True)
