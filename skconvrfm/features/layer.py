"""ConvFeatures, a convolutional feature layer: its hyperparameters and fitted state."""

from __future__ import annotations

import copy
from numbers import Integral, Real
from typing import Any, Literal

from sklearn.base import BaseEstimator

from .._docs import fill_in
from .._input import check_pair
from .._scale import SCALE_CONSTRAINTS, SCALE_PARAMETER
from .._sklearn_compat import Interval, StrOptions
from .._typing import Activation, Array, Filters, Metric, Padding, Pair, Pool, Scale
from ..compute.images import convolution_layers
from .filters import SHRINKAGE, FilterBank, PatchMoments
from .maps import ACTIVATIONS, FilterLayer
from .pools import POOLS, pool_exponents

_DEFAULT_GRID = (3, 3)
# Of these the criterion chooses where a parameter is "auto"; the first is preferred.
AUTO: dict[str, tuple] = {"normalize": (1.0, 0.03), "pool": ("root", "norm")}


@fill_in(scale=SCALE_PARAMETER)
class ConvFeatures(BaseEstimator):
    r"""Convolutional features: filters that carry a patch metric, activation and pool.

    The response of filter w with bias t to the patch v at a location is
    :math:`\sqrt 2 \max(w^\top v / \sqrt c + t, 0)`; responses u are pooled over the
    cells of a grid, as :math:`(\text{mean } u^p)^q` or their maximum. Filters are drawn
    once, and take the metric of every round in turn, so that rounds differ by what was
    learned. :class:`~skconvrfm.PatchAGOPTransformer` gives fitted maps to other models.

    Parameters
    ----------
    n_filters : int, default=512
        Number of filters. Accuracy and cost grow with it; 512 is about 2 points better
        than 256 on CIFAR-10.
    patch_size : int or (int, int), default=6
        Rows and columns of a patch, clipped to the image. 6 is the best size for 32×32
        photographs; digits like 7, small images less.
    padding : {"valid", "same"}, default="valid"
        With "valid" patches lie inside the image; "same" pads it with zeros.
    filters : {"patches", "gaussian"}, default="patches"
        Training patches under the metric (Coates, Lee and Ng, 2011), drawn evenly over
        classes (or targets) and scaled to one length, which are the more accurate; or
        N(0, M) (Deep ConvRFM, arXiv:2309.00570), whose kernel tends to the exact one
        (pooled, of one layer, :class:`~skconvrfm.kernels.ConvNNGP`).
    normalize : float, "auto" or None, default=None
        Take patches less the mean of their entries and over their contrast, :math:`(v
        - \bar v) / \sqrt{s^2 + \varepsilon}` with the variance s² of the entries, so
        that dark and faint places count as others. The number is ε in units of the
        mean of s² over training patches, from 1e-12 to 1e12; None takes patches as they
        are. 0.3 to 1 suit photographs, and 0.01 to 0.1 objects on blank ground.
        "auto", below a kernel of whole maps, is 1 or 0.03, by the criterion in round 0.
        Where contrast itself is the signal, such as noise of other size, it is lost.
    metric : {"whiten", "identity"}, default="whiten"
        Metric of round 0: the inverse of the patch covariance, with patches taken from
        their mean; or none.
    shrinkage : float, default=0.1
        Added to the variances that ``metric="whiten"`` divides by, in units of their
        mean. Layers of many channels want more: 1 to 3 for patches of 2000 entries.
    candidates : int, default=1
        Filters that are drawn for each one that is kept. From 2 on, round 1 keeps the
        filters of the largest `importance_` (see Notes). Of two layers 4 add 1 to 2
        points on CIFAR-10 and on digits in noise; prediction costs the same.
    learn : bool, default=True
        Learn the patch metric in the rounds. Of a first layer of whitened patches under
        a nonlinear kernel it has not gained on photographs.
    agop_power : float or None, default=None
        Power p of this layer's AGOP; None is that of the estimator.
    bias : float, default=0.3
        Standard deviation of the biases of the filters, which are drawn.
    activation : {"relu", "identity"}, default="relu"
        Function that follows the filters. The published code has none, "identity".
    threshold : float, default=0.5
        Subtracted from the responses before the activation, in their standard
        deviations. With ``"relu"``, sparser maps are more accurate (measured: see
        "Linear in the number of images" in the guide).
    pool : {"root", "mean", "norm", "max", "auto"} or (float, float), default="root"
        Pool of a cell, a pair (p, q) of :math:`(\text{mean } u^p)^q` or its name.
        "root" (1, ½) makes a faint pattern count for more against a strong one: more
        accurate on photographs, digits and articles, but not where cells have a few
        noisy locations. "mean" is (1, 1). "norm" (4, ¼) counts the strongest matches,
        which is more accurate where an object stands anywhere in noise, and "max" the
        strongest alone. "auto", of the last layer below a kernel of whole maps, is
        "root" or "norm", by the criterion in round 0. p from 1 to 8, since slopes have
        no bound below 1; q up to 8.
        On a CPU whole p are compiled, and others several times slower.
        Negative responses, of ``activation="identity"``, count by their absolute value
        where p > 1, and with their sign where p is 1.
    pool_grid : int, (int, int) or None, default=(3, 3)
        Rows and columns of the grid of cells, clipped to the map; 1 is a global pool,
        None keeps every location.
    pool_size : int, (int, int) or None, default=None
        Rows and columns of a cell, in place of `pool_grid`: for a layer below another
        one, whose map is to keep its size in proportion to the image.
    pool_overlap : float, default=0.0
        How far a cell reaches into its neighbours on each side, as a share of its own
        size, rounded and clipped to the map: at most 1. 0 is none, which costs least.
    mirror : bool, default=False
        Average the features of an image and of its mirror (columns reversed), so that
        both have one prediction: about 2 points on CIFAR-10, and twice the time. Off by
        default, because digits and letters have a hand. For the last layer below a
        kernel of whole maps: the image passes all layers twice.

    skip : bool, default=False
        Show the kernel the maps of this layer as well, beside those of the last one:
        averaged over the last one's grid, each of the two scaled to unit spread. In
        prototypes on CIFAR-10 it added a third of a point to 2000 images, and nothing
        to 5000.
    %(scale)s

    Attributes
    ----------
    filters_ : ndarray of shape (n_filters, d)
        The filters under the metric that was learned, d = c·rows·columns entries in the
        order (channel, row, column). Fitted attributes are those of the elements of
        ``features_`` of an estimator.
    biases_, offsets_ : ndarray of shape (n_filters,)
        Added to their responses (bias, threshold and centre), and o, a hundredth of the
        deviation of responses, of pools :math:`(m + o^p)^q - o^{pq}` of means m with
        :math:`q \ne 1`.
    importance_ : ndarray of shape (n_filters,)
        Mean squared gradient of the predictor with respect to the responses of each
        filter, summed over locations and outputs: the diagonal of the AGOP in filter
        coordinates.
    patch_transform_, patch_agop_, filter_transform_ : ndarray of shape (d, d)
        The symmetric patch transform T of the round that was kept, the patch AGOP of
        its predictor, and the learned transform: T, or where round 0 was kept, which
        has learned none yet, the one that its AGOP gives.
    directions_, unit_biases_ : ndarray of shape (n_filters, d) and (n_filters,)
        The draws that filters and biases are made of.
    patch_mean_, patch_covariance_, initial_transform_ : ndarray of (d,) or (d, d)
        Moments of the training patches, and the patch transform of round 0, of which
        None is the identity.
    normalize_, pool_ : float or None, str or (float, float)
        `normalize` and `pool`, or which of them was chosen.
    skip_scale_ : float or None
        Factor of the layer's features beside those of others; None without `skip`.
    floor_ : float or None
        The ε of normalised patches, None of others.
    image_shape_, best_round_, alpha_, history_
        Shape (h, w, c) of the images, or maps, that the layer sees; round, ridge and
        history of the fit that learned the metric.

    Notes
    -----
    Filters are chosen from the image up. The candidates of a layer, drawn from the maps
    of the layers below, are pooled as the last layer is, the kernel machine is fitted
    on all of them, and those to whose responses its predictions are the most sensitive
    are kept.

    Examples
    --------
    >>> from skconvrfm import ConvRFMClassifier
    >>> from skconvrfm.datasets import load_digit_images
    >>> from skconvrfm.features import ConvFeatures
    >>> X, y = load_digit_images(return_X_y=True)
    >>> clf = ConvRFMClassifier("linear", ConvFeatures(64, patch_size=5), n_rounds=1)
    >>> clf.fit(X[:200], y[:200]).features_[0].filters_.shape
    (64, 25)
    """

    _parameter_constraints: dict = {
        "n_filters": [Interval(Integral, 1, None, closed="left")],
        "patch_size": [Interval(Integral, 1, None, closed="left"), tuple, list],
        "padding": [StrOptions({"valid", "same"})],
        "filters": [StrOptions({"patches", "gaussian"})],
        "normalize": [
            Interval(Real, 1e-12, 1e12, closed="both"),
            StrOptions({"auto"}),
            None,
        ],
        "metric": [StrOptions({"identity", "whiten"})],
        "shrinkage": [Interval(Real, 0, None, closed="neither")],
        "candidates": [Interval(Integral, 1, None, closed="left")],
        "learn": ["boolean"],
        "agop_power": [Interval(Real, 0, None, closed="neither"), None],
        "bias": [Interval(Real, 0, 1e100, closed="both")],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "threshold": [Interval(Real, None, None, closed="neither")],
        "pool": [StrOptions({*POOLS, "auto"}), tuple, list],
        "pool_grid": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "pool_size": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "pool_overlap": [Interval(Real, 0, 1, closed="both")],
        "mirror": ["boolean"],
        "skip": ["boolean"],
        **SCALE_CONSTRAINTS,
    }

    def __init__(
        self,
        n_filters: int = 512,
        *,
        patch_size: Pair = 6,
        padding: Padding = "valid",
        filters: Filters = "patches",
        normalize: float | Literal["auto"] | None = None,
        metric: Metric = "whiten",
        shrinkage: float = SHRINKAGE,
        candidates: int = 1,
        learn: bool = True,
        agop_power: float | None = None,
        bias: float = 0.3,
        activation: Activation = "relu",
        threshold: float = 0.5,
        pool: Pool = "root",
        pool_grid: Pair | None = _DEFAULT_GRID,
        pool_size: Pair | None = None,
        pool_overlap: float = 0.0,
        mirror: bool = False,
        skip: bool = False,
        scale: Scale = "auto",
    ) -> None:
        self.n_filters = n_filters
        self.patch_size = patch_size
        self.padding = padding
        self.filters = filters
        self.normalize = normalize
        self.metric = metric
        self.shrinkage = shrinkage
        self.candidates = candidates
        self.learn = learn
        self.agop_power = agop_power
        self.bias = bias
        self.activation = activation
        self.threshold = threshold
        self.pool = pool
        self.pool_grid = pool_grid
        self.pool_size = pool_size
        self.pool_overlap = pool_overlap
        self.mirror = mirror
        self.skip = skip
        self.scale = scale

    def bind(self, image_shape: tuple[int, int, int]) -> ConvFeatures:
        """Return a copy of the layer for images of shape (h, w, c), checked."""
        self._validate_params()
        check_pair(self.patch_size, "patch_size")
        single = "None, nor a positive int,"
        if self.pool_grid is not None:
            grid = check_pair(self.pool_grid, "pool_grid", single)
            if self.pool_size is not None and grid != _DEFAULT_GRID:
                raise ValueError(
                    f"pool_grid={self.pool_grid!r} and pool_size={self.pool_size!r} "
                    "both say how maps are pooled: pass one of them, and the other as "
                    "None."
                )
        if self.pool_size is not None:
            check_pair(self.pool_size, "pool_size", single)
        if self.pool_overlap and self.pool_grid is None and self.pool_size is None:
            raise ValueError(
                f"pool_overlap={self.pool_overlap!r} has no cells to widen: pool_grid "
                "and pool_size are None. Pass one of them, or pool_overlap=0."
            )
        bound = copy.copy(self)
        bound.image_shape_ = tuple(image_shape)
        return bound.with_choice({name: bound.options(name)[0] for name in AUTO})

    def with_choice(self, choice: dict) -> ConvFeatures:
        """Return the bound layer with values for parameters that may be "auto"."""
        other = copy.copy(self)
        for name, value in choice.items():
            setattr(other, f"{name}_", value)
        pool_exponents(other.pool_)
        return other

    def options(self, name: str) -> tuple:
        """Return the values of a parameter of which one is chosen, the preferred first.

        It is the given one alone where that is not "auto".
        """
        given = getattr(self, name)
        return AUTO[name] if given == "auto" else (given,)

    @property
    def choice(self):
        """Values of the parameters that may be "auto", a dict."""
        return {name: getattr(self, f"{name}_") for name in AUTO}

    @property
    def layer_(self):
        """Patches and locations of the bound layer, a `Layer`."""
        patch = check_pair(self.patch_size, "patch_size")
        return convolution_layers(self.image_shape_, patch, self.padding, 1)[0]

    @property
    def patch_shape_(self):
        """Rows and columns of a patch of the bound layer."""
        return self.layer_.patch

    @property
    def grid(self):
        """Rows and columns of cells of the bound layer; None where there is no pool."""
        if self.pool_size is not None:
            sizes = check_pair(self.pool_size, "pool_size")
            locations = self.layer_.locations
            return tuple(max(1, n // s) for n, s in zip(locations, sizes, strict=True))
        grid = self.pool_grid
        return None if grid is None else check_pair(grid, "pool_grid")

    @property
    def exponents(self):
        """Exponents p and q of the pool; 1 where there is none."""
        return (1.0, 1.0) if self.grid is None else pool_exponents(self.pool_)

    @property
    def maps_(self):
        """Filters, activation and pool of the fitted layer, a `FilterLayer`."""
        arrays = self.filters_, self.biases_, self.offsets_
        return self.with_filters(*arrays, self.floor_)

    @property
    def bank_(self):
        """Filters of the fitted layer before they take a metric, a `FilterBank`."""
        draws = self.directions_, self.unit_biases_
        moments = PatchMoments(self.patch_mean_, self.patch_covariance_, self.floor_)
        return FilterBank(*draws, moments, self.initial_transform_)

    def pooled_as(self, other: ConvFeatures) -> ConvFeatures:
        """Return the bound layer with the pool of another one, and its mirror."""
        like = copy.copy(self)
        like.pool_, like.pool_grid = other.pool_, other.pool_grid
        like.pool_size, like.pool_overlap = other.pool_size, other.pool_overlap
        like.mirror = other.mirror
        return like

    def with_filters(
        self, filters: Array, biases: Array, offsets: Array, floor: float | None = None
    ) -> FilterLayer:
        """Return given filters with the bound layer's options, a `FilterLayer`."""
        order, power = self.exponents
        pool = self.grid, power, offsets, order, float(self.pool_overlap)
        options = self.activation, biases, *pool, floor, bool(self.mirror)
        return FilterLayer(self.layer_, filters, *options)

    def fitted(
        self, bank: FilterBank, maps: FilterLayer, **learned: Any
    ) -> ConvFeatures:
        """Return the bound layer with fitted attributes; ``learned`` are the others."""
        fitted = copy.copy(self)
        fitted.filters_, fitted.biases_ = maps.filters, maps.biases
        fitted.offsets_ = maps.offsets
        fitted.directions_, fitted.unit_biases_ = bank.directions, bank.unit_biases
        fitted.patch_mean_, fitted.floor_ = bank.moments.mean, bank.moments.floor
        fitted.patch_covariance_ = bank.moments.covariance
        fitted.initial_transform_, fitted.skip_scale_ = bank.initial, None
        for name, value in learned.items():
            setattr(fitted, f"{name}_", value)
        return fitted
