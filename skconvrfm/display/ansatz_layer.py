"""Display of the two matrices that the ansatz compares in a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..learning.rounds import leading_eigenvectors
from ._axes import make_axes, signed
from .filters import as_picture


@dataclass(kw_only=True, eq=False, repr=False)
class AnsatzLayerDisplay:
    """Filter covariance and patch AGOP of a layer, and their leading eigenvectors.

    Each matrix is drawn from blue (negative) over white to red, the largest hundredth
    of its entries in full colours, and beside it its leading eigenvectors as patches,
    in the manner of :class:`PatchFiltersDisplay`. If the ansatz holds, the rows look
    alike. Use :meth:`from_report`.

    Parameters
    ----------
    covariance, agop : array-like of shape (d, d)
        The filter covariance, and the patch AGOP to its power.
    patch_shape : tuple of int
        Channels, rows and columns of a patch, d = c·rows·columns.
    name : str, default=""
        Name of the layer, the title.

    Attributes
    ----------
    figure_, axes_, images_ : Figure, ndarray of Axes, list of AxesImage (matplotlib)
        The figure; axes and images, of the covariance and of its eigenvectors, then of
        the AGOP and of its.

    Examples
    --------
    >>> import numpy as np
    >>> from skconvrfm.display import AnsatzLayerDisplay
    >>> matrices = {"covariance": np.eye(9), "agop": np.eye(9)}
    >>> display = AnsatzLayerDisplay(**matrices, patch_shape=(1, 3, 3), name="conv1")
    >>> display.plot(n_patches=2).axes_.shape
    (2, 3)
    """

    covariance: ArrayLike
    agop: ArrayLike
    patch_shape: tuple[int, int, int]
    name: str = ""

    @classmethod
    def from_report(
        cls,
        report: Any,
        name: str,
        *,
        group: int = 0,
        n_patches: int = 4,
        ax: Any = None,
    ) -> AnsatzLayerDisplay:
        """Draw a layer of a report of :meth:`skconvrfm.AnsatzScorer.report`.

        Parameters
        ----------
        report : AnsatzReport
            The report; of several powers of the AGOP the first is drawn.
        name : str
            Name of a layer.
        group : int, default=0
            Which group of filters, of a grouped convolution.
        n_patches, ax : int, matplotlib Axes or sequence, default=4 and None
            As in :meth:`plot`.
        """
        covariance, agop = report.matrices(name)
        row = next(row for row in report if row.name == name)
        if not 0 <= group < len(covariance):
            raise ValueError(
                f"group={group!r} must be from 0 to {len(covariance) - 1}, the groups "
                f"of layer {name!r}."
            )
        eigenvalues, vectors = np.linalg.eigh(agop[group])
        power = np.ravel(report.agop_power)[0]
        agop = (vectors * eigenvalues.clip(0) ** power) @ vectors.T
        sizes: tuple = row.shape[2:] if row.kind != "transposed" else ()
        # Of a layer without rows and columns a patch is a row of channels.
        rows, columns = sizes if len(sizes) == 2 else (1, int(np.prod(sizes)))
        shape = len(agop) // (rows * columns), rows, columns
        shape = (1, 1, len(agop)) if rows * columns == 1 else shape
        display = cls(
            covariance=covariance[group], agop=agop, patch_shape=shape, name=name
        )
        return display.plot(ax, n_patches=n_patches)

    def plot(self, ax: Any = None, *, n_patches: int = 4) -> AnsatzLayerDisplay:
        """Draw both rows, and return the display.

        Parameters
        ----------
        ax : matplotlib Axes or sequence of 2·(1 + n_patches) of them, default=None
            Axes for each picture, or one for all; by default in a new figure.
        n_patches : int, default=4
            Eigenvectors of each, at most d.
        """
        matrices = {
            "filter covariance": np.asarray(self.covariance),
            "patch AGOP": np.asarray(self.agop),
        }
        n_columns = 1 + min(n_patches, len(matrices["patch AGOP"]))
        size = (1.6 + 1.3 * n_columns, 4.0)
        axes = make_axes(ax, 2 * n_columns, n_columns, size, "one per picture")
        self.axes_, self.images_ = axes.reshape(2, n_columns), []
        self.figure_ = axes[0].figure
        for places, (title, matrix) in zip(self.axes_, matrices.items(), strict=True):
            vectors = leading_eigenvectors(matrix, n_columns - 1)
            patches = np.moveaxis(vectors.reshape(-1, *self.patch_shape), 1, -1)
            peak = np.quantile(np.abs(matrix), 0.99) or np.abs(matrix).max() or 1.0
            pictures = [(matrix, signed(peak)), *map(as_picture, patches)]
            for place, (pixels, options) in zip(places, pictures, strict=True):
                image = place.imshow(pixels, interpolation="nearest", **options)
                self.images_.append(image)
                place.set(xticks=[], yticks=[])
            title = f"{self.name} {title}".strip()
            places[0].set_title(title, fontsize="small", loc="left")
        return self
