"""The peer of the linear path: scattering coefficients with kymatio.

It runs in a virtual environment of its own (``kymatio_requirements.txt``: kymatio 0.3
needs an older scipy), imports nothing of skconvrfm, and is a worker like the other::

    echo '{"input": "in.npz", "output": "out.npz"}' | python kymatio_peer.py

A request has

- ``input``: an .npz file with ``images`` (n, h, w, c);
- ``output``: the .npz file to write, whose ``result`` are the coefficients, flat, of
  shape (n, n_features);
- optionally ``J`` (scales, default 2), ``L`` (orientations, default 8) and ``batch``
  (images that go together, default 50).

The answer has ``seconds`` and ``cpu_seconds``; the filters are built before the clock
starts, unless they are there already.
"""

import functools

import numpy as np
import torch
from kymatio.torch import Scattering2D
from serving import serve, timed


@functools.cache
def scattering(J, L, shape):
    """The filters for images of a shape."""
    return Scattering2D(J=J, L=L, shape=shape)


def scatter(images, transform, batch):
    """Coefficients of images (n, h, w, c), flat, batch by batch."""
    out = []
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            maps = torch.from_numpy(images[start : start + batch]).permute(0, 3, 1, 2)
            out.append(transform(maps.contiguous()).flatten(1).numpy())
    return np.concatenate(out)


def answer(request):
    """Compute what a request asks for and return the answer."""
    with np.load(request["input"]) as archive:
        images = np.float32(archive["images"])
    shape = images.shape[1:3]
    transform = scattering(request.get("J", 2), request.get("L", 8), shape)
    run = functools.partial(scatter, images, transform, request.get("batch", 50))
    seconds, cpu_seconds, result = timed(run)
    np.savez(request["output"], result=result)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds}


if __name__ == "__main__":
    serve(answer)
