"""The peer of the benchmarks: the same kernel and AGOP with neural-tangents.

It runs in a virtual environment of its own (``neural_tangents_requirements.txt``) and
imports nothing of skconvrfm. It is a worker: it reads one request a line (JSON) from
the standard input and answers with one line (JSON), until the input ends. Imports and
compilation are so paid once, however often a case is repeated::

    echo '{"task": "kernel", "input": "in.npz", "output": "out.npz"}' \
        | python neural_tangents_peer.py

A request has

- ``task``: "kernel", "agop", or "info", which needs nothing else;
- ``input``: an .npz file with ``images`` (n, h, w, c), for an AGOP also ``dual_coef``
  (n, n_classes) and ``points`` (m, h, w, c), and optionally ``patch_transform``
  (d, d), symmetric;
- ``output``: the .npz file to write: ``result`` is the kernel (n, n), or the AGOP
  (d, d) averaged over the points;
- optionally the fields of `Options`: what to compute, and what tunes the speed.

The answer has ``seconds`` and ``cpu_seconds`` of a warm run, and ``compile_seconds``:
how much longer the first run of its kind took, 0 where this was not the first. The
clock starts when the patches are ready and stops when the result is a numpy array.

The network: patches become channels, so that the first layer is a 1x1 convolution and
can measure them in any metric; deeper layers are ordinary convolutions. The standard
deviations of the weights turn the averages of neural-tangents into the sums of
skconvrfm: the first layer divides by the channels of the image and not by the length
of a patch, the others add over the window, and each ReLU preserves the variance.
"""

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
from neural_tangents import stax
from serving import serve, timed


@dataclass(frozen=True)
class Options:
    """Fields of a request; the defaults were the fastest on two cores.

    Attributes
    ----------
    depth, patch_size : int
        Of the network.
    block_size : int
        Images on either side of a block of the kernel; centres in a block of the
        AGOP.
    block_points : int
        Points in a block of the AGOP.
    n_threads : int
        Blocks that are computed at the same time. XLA has a pool of threads besides.
    readout : {"apart", "fused"}
        Whether the readout is compiled apart from the layers. Where it is not, XLA
        fuses the last ReLU into it and evaluates each arc tangent twice.
    class_map : {"vmap", "lax.map"}
        How the one vector-Jacobian product is mapped over the classes.
    """

    depth: int = 3
    patch_size: int = 3
    block_size: int = 25
    block_points: int = 2
    n_threads: int = 2
    readout: str = "apart"
    class_map: str = "vmap"


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


def network_layers(options):
    """The layers up to the last ReLU, and those of the readout."""
    patch = (options.patch_size, options.patch_size)
    first = stax.Conv(1, (1, 1), W_std=options.patch_size)
    deeper = stax.Conv(1, patch, padding="VALID", W_std=2**0.5 * options.patch_size)
    layers = [first, stax.Relu()] + [deeper, stax.Relu()] * (options.depth - 1)
    return layers, [stax.Flatten(), stax.Dense(1, W_std=2**0.5)]


def whole_kernel(options):
    """The neural tangent kernel of two blocks of patches, not compiled."""
    layers, readout = network_layers(options)
    kernel_fn = stax.serial(*layers, *readout)[2]
    return lambda left, right: kernel_fn(left, right, get="ntk")


@functools.cache
def compiled_kernel(options):
    """The neural tangent kernel of two blocks of patches, compiled."""
    if options.readout == "fused":
        return jax.jit(whole_kernel(options))
    layers, readout = (stax.serial(*part)[2] for part in network_layers(options))
    layers = jax.jit(functools.partial(layers, diagonal_spatial=True))
    readout = jax.jit(functools.partial(readout, get="ntk"))
    return lambda left, right: readout(layers(left, right))


@functools.cache
def compiled_gradients(options):
    """The gradients at a block of points by a block of centres, for all classes."""
    kernel = whole_kernel(options)

    def gradients(centres, dual_coef, points):
        _, pull_back = jax.vjp(functools.partial(kernel, centres), points)
        shape = (len(centres), len(points))

        def of_class(coef):
            return pull_back(jnp.broadcast_to(coef[:, None], shape))[0]

        if options.class_map == "vmap":
            return jax.vmap(of_class)(dual_coef.T)
        return jax.lax.map(of_class, dual_coef.T)

    return jax.jit(gradients)


@jax.jit
def outer_products(gradients):
    """Sum of outer products over classes, points and locations."""
    return jnp.einsum("omhwd,omhwe->de", gradients, gradients)


def compute_kernel(options, arrays):
    """The training kernel: blocks of the upper triangle, mirrored."""
    kernel = compiled_kernel(options)
    blocks = _split(arrays["images"], options.block_size)
    pairs = [(i, j) for i in range(len(blocks)) for j in range(i, len(blocks))]

    def compute(pair):
        return np.asarray(kernel(blocks[pair[0]], blocks[pair[1]]))

    n = len(arrays["images"])
    result = np.empty((n, n), dtype=np.float32)
    with ThreadPoolExecutor(options.n_threads) as pool:
        for (i, j), values in zip(pairs, pool.map(compute, pairs), strict=True):
            top, left = i * options.block_size, j * options.block_size
            rows = slice(top, top + values.shape[0])
            columns = slice(left, left + values.shape[1])
            result[rows, columns] = values
            result[columns, rows] = values.T
    return result


def compute_agop(options, arrays):
    """The patch AGOP: one vector-Jacobian product a block, for all classes."""
    gradients = compiled_gradients(options)
    centres = _split(arrays["images"], options.block_size)
    coefs = _split(arrays["dual_coef"], options.block_size)

    def compute(points):
        blocks = zip(centres, coefs, strict=True)
        total = sum(gradients(block, coef, points) for block, coef in blocks)
        return np.asarray(outer_products(total))

    points = _split(arrays["points"], options.block_points)
    with ThreadPoolExecutor(options.n_threads) as pool:
        result = sum(pool.map(compute, points)) / len(arrays["points"])
    if "patch_transform" not in arrays:
        return result
    # The gradients are those with respect to the transformed patches.
    transform = arrays["patch_transform"]
    return transform @ result @ transform


def _split(array, size):
    """Consecutive blocks of at most `size` rows."""
    return [array[start : start + size] for start in range(0, len(array), size)]


TASKS = {"kernel": compute_kernel, "agop": compute_agop}


class Worker:
    """Answers requests; knows which of them are warm."""

    def __init__(self):
        self._warm = set()

    def answer(self, request):
        """Compute what a request asks for and return the answer."""
        if request["task"] == "info":
            names = ("neural-tangents", "jax", "jaxlib", "numpy", "scipy")
            return {name: version(name) for name in names}
        names = {field.name for field in fields(Options)} & request.keys()
        options = Options(**{name: request[name] for name in names})
        arrays = self._load(request["input"], options)
        run = functools.partial(TASKS[request["task"]], options, arrays)
        key = (run.func, options, *(array.shape for array in arrays.values()))
        cold = 0.0
        if key not in self._warm:
            cold = timed(run)[0]
            self._warm.add(key)
        seconds, cpu_seconds, result = timed(run)
        np.savez(request["output"], result=result)
        return {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "compile_seconds": max(0.0, cold - seconds) if cold else 0.0,
        }

    def _load(self, path, options):
        """The arrays of a request; images as transformed patches."""
        with np.load(path) as archive:
            arrays = {name: np.float32(archive[name]) for name in archive.files}
        for name in {"images", "points"} & arrays.keys():
            patches = extract_patches(arrays[name], options.patch_size)
            if "patch_transform" in arrays:
                patches = patches @ arrays["patch_transform"]
            arrays[name] = jnp.asarray(patches)
        return arrays


if __name__ == "__main__":
    serve(Worker().answer)
