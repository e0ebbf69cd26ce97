"""Near-duplicates among images: shifted, noisy copies, found by low frequencies.

A shift does not change the moduli of an image's Fourier coefficients, and noise changes
those of low frequencies little. An image has a near-duplicate where its nearest
neighbour in them is far nearer than the nearest quarter of all images, and correlates
with it after a small shift.
"""

import math

import numpy as np

from .blocks import byte_blocks
from .images import take

# Images that are looked at, and those among which they may have a near-duplicate.
_QUERIES, _OTHERS = 1000, 5000
# Fewer images, or pixels along a side, have neighbours that are near by chance.
_LEAST_IMAGES, _LEAST_SIDE = 20, 7
_FREQUENCIES = np.arange(-3, 4), np.arange(5)  # along columns and rows of pixels
_BLOCK_BYTES = 2**22
# Distance over that of the nearest quarter; measured: the tenth with the nearest
# neighbours has .16 on Fashion-MNIST, .22 on MNIST, .42 on CIFAR-10, .03 to .1 where a
# tenth of the rows are copies with shifts and noise.
_RATIO = 0.12
_BLANK = 1e-9  # of the longest; blank images have no content to compare
_SHIFTS = np.linspace(-1 / 8, 1 / 8, 9)  # of the sides
_CORRELATION = 0.9  # of near-duplicates after the shift


def near_duplicate_share(images):
    """Return the share of images (n, h, w, c) that have a near-duplicate; a sample."""
    if len(images) < _LEAST_IMAGES or min(images.shape[1:3]) < _LEAST_SIDE:
        return 0.0
    # Seeded, as all draws; sorted, for images that are stored.
    chosen = np.random.RandomState(0).permutation(len(images))[:_OTHERS]
    spectra = _spectra(take(images, np.sort(chosen)))
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(spectra, axis=1)
    spectra = spectra[lengths > _BLANK * lengths.max()]
    if len(spectra) < _LEAST_IMAGES:
        return 0.0
    spectra /= np.linalg.norm(spectra, axis=1, keepdims=True)
    queries = np.random.RandomState(0).permutation(len(spectra))[:_QUERIES]
    moduli = np.abs(spectra)
    squares = (moduli**2).sum(1)
    distances = squares[queries, None] + squares - 2 * moduli[queries] @ moduli.T
    distances[np.arange(len(queries)), queries] = np.inf
    nearest = distances.argmin(1)
    quarter = np.partition(distances, len(spectra) // 4, axis=1)[:, len(spectra) // 4]
    is_near = distances.min(1) < _RATIO**2 * quarter
    pairs = spectra[queries[is_near]], spectra[nearest[is_near]]
    return np.count_nonzero(_correlation(*pairs) > _CORRELATION) / len(queries)


def _spectra(images):
    """Return low Fourier coefficients (n, m) of images, without that of the mean."""
    n, height, width, depth = images.shape
    rows, columns = (
        np.exp(-2j * math.pi * np.outer(frequencies, np.arange(size)) / size)
        for frequencies, size in zip(_FREQUENCIES, (height, width), strict=True)
    )
    spectra = np.empty((n, depth, len(rows), len(columns)), dtype=complex)
    for part in byte_blocks(images, _BLOCK_BYTES):
        block = np.asarray(images[part]).astype(float).transpose(0, 3, 1, 2)
        with np.errstate(all="ignore"):  # what overflows is no near-duplicate
            block -= block.mean((2, 3), keepdims=True)
            spectra[part] = rows @ (block @ columns.T)
    return spectra.reshape(n, -1)


def _correlation(left, right):
    """Return the largest correlation (n,) of two images over small shifts."""
    sizes = [len(frequencies) for frequencies in _FREQUENCIES]
    n_channels = left.shape[1] // math.prod(sizes)
    products = (left * right.conj()).reshape(len(left), n_channels, *sizes).sum(1)
    rows, columns = (
        np.exp(2j * math.pi * np.outer(_SHIFTS, frequencies))
        for frequencies in _FREQUENCIES
    )
    return (rows @ products @ columns.T).real.max((1, 2))
