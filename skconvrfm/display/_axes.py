"""Axes, colours and options of pictures, shared by the displays."""

import numpy as np


def check_matplotlib():
    """Say how to get matplotlib if it is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'Displays need matplotlib. Install it with `pip install "skconvrfm[plot]"`.'
        ) from error


def make_axes(ax, n_axes, n_columns, size, what):
    """Return axes of a new figure, in the place of one, or those that are given."""
    check_matplotlib()
    from matplotlib.axes import Axes

    if ax is not None and not isinstance(ax, Axes):
        axes = np.ravel(ax)
        others = {type(one).__name__ for one in axes if not isinstance(one, Axes)}
        if axes.size != n_axes or others:
            got = f"objects of type {min(others)}" if others else axes.size
            raise ValueError(
                f"ax must be one matplotlib Axes or a sequence of {n_axes} of them "
                f"({what}), got {got}."
            )
        return axes
    if ax is None:
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=size, layout="constrained")
        divide = figure.add_gridspec
    else:
        if ax.get_subplotspec() is None:
            raise ValueError(
                "ax has no place in a grid that could be divided: make it with "
                "plt.subplots or figure.add_subplot."
            )
        figure, divide = ax.figure, ax.get_subplotspec().subgridspec
        ax.set_axis_off()
    grid = divide(-(-n_axes // n_columns), n_columns)
    return np.array([figure.add_subplot(grid[place]) for place in range(n_axes)])


def signed(peak):
    """Return options for imshow: blue is negative, white 0, red positive."""
    return {"cmap": "RdBu_r", "vmin": -peak, "vmax": peak}


def stretched(image):
    """Return pixels of an image (rows, columns, channels) for imshow, 0 to 1."""
    image = np.asarray(image, dtype=np.float64)
    if image.shape[2] == 1:
        image = image[..., 0]
    elif image.shape[2] != 3:
        image = np.linalg.norm(image, axis=2)
    return (image - image.min()) / (np.ptp(image) or 1.0)
