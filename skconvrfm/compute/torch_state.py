"""Settings of torch that belong to the caller's code and must not change a result.

A default device and a default dtype have no effect, because every tensor names its own.
"""

from contextlib import contextmanager

import torch


@contextmanager
def plain_torch():
    """Leave autocast and inference mode; as a decorator, in every call of a function.

    Autocast would compute in half precision, and what inference mode makes cannot be
    changed by other threads.
    """
    with (
        torch.inference_mode(False),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield
