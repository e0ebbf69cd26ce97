"""Scattering coefficients with kymatio, whose version 0.3 needs an older scipy."""

import functools

import numpy as np
import torch
from kymatio.torch import Scattering2D
from serving import serve, timed


@functools.cache
def scattering(J, L, shape):
    """Return the filters for images of a shape."""
    return Scattering2D(J=J, L=L, shape=shape)


@torch.inference_mode()
def scatter(images, transform, batch):
    """Return coefficients of images (n, h, w, c), flat, batch by batch."""
    maps = torch.from_numpy(images).permute(0, 3, 1, 2).split(batch)
    return torch.cat([transform(m.contiguous()).flatten(1) for m in maps]).numpy()


def answer(arrays, J=2, L=8, batch=50):
    """Return times and coefficients; filters are built before the clock starts."""
    images = np.float32(arrays["images"])
    transform = scattering(J, L, images.shape[1:3])
    return timed(lambda: scatter(images, transform, batch))


if __name__ == "__main__":
    serve(answer)
