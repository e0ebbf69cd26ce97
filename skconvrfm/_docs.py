"""Texts that docstrings share."""

import inspect

_REFERENCE = """Feature layers, then a kernel, then ridge regression%(on_classes)s.
    After each solve the patch average gradient outer product (AGOP) of the predictor
    becomes the metric of patches for the next one: ConvRFM.

    Parameters
    ----------
    kernel : str or kernel object, default="ntk"
        Kernel that compares two images, or what the feature layers make of them: an
        object of :mod:`skconvrfm.kernels`, or the name of one with its defaults:
        "ntk" (:class:`~skconvrfm.kernels.ConvNTK`, the kernel of the paper), "nngp",
        "patch_gaussian", "patch_laplace"; or of whole maps "gaussian", "laplace",
        "linear".
    features : ConvFeatures, list of ConvFeatures, "auto" or None, default=None
        Convolutional feature layers below the kernel, from the image up. None is the
        kernel of the images; ``"auto"`` is one layer or, from 24 pixels on, two.
        Under a kernel of whole maps all layers learn together; under a kernel of
        patches this is Deep ConvRFM: layer by layer, each a predictor, of which
        `selection` keeps the best.
    alpha : float or array-like of float, default=half decades from 1e-6 to 1e2
        The ridge, in units of the largest diagonal entry of the kernel; of several,
        `selection` chooses. One decomposition serves them all.
    n_rounds : int, default=4
        Most updates of the patch metrics after the first fit. 0 is the fixed machine.
        More rounds cost time and no accuracy, for `selection` keeps the best. A kernel
        of whole images without feature layers has no patch metric, and one round.
    n_iter_no_change : int or None, default=1
        End the rounds, of each layer of Deep ConvRFM, when the criterion of `selection`
        has not been lower than all before for so many rounds. 1 saves time and seldom
        changes the round that is kept (:ref:`stopping`); None does all `n_rounds`.
        ``selection="last"`` has no criterion and always does all; a number beyond 1 is
        an error there.
    agop_power : float, default=0.5
        The power of the patch AGOP that becomes the patch transform.
    agop_samples : "auto", int, float or None, default="auto"
        Images that carry the AGOP: a number, a fraction, or None for all. They are
        drawn evenly over classes (or targets), and in proportion to the weights.
        ``"auto"`` takes as many as make 20,000 patches, and at least 20; more did not
        raise the accuracy (measured: see "How many images" in the guide). Behind
        feature layers, where they are cheap, it takes 200,000 patches, and under
        "gaussian" and "laplace" 100 images at most.
    landmarks : int or None, default=None
        Training images that a kernel compares with, which takes n·M pairs and M²
        numbers in place of n² (Nyström; see :ref:`landmarks`). They are drawn evenly
        over classes (or targets), and in proportion to the weights. None, or as many
        as there are images, is the exact machine. "linear" needs none.
    selection : {"gcv", "loo", "holdout", "last"}, default="gcv"
        Criterion that chooses ridge, round and layer: generalised cross-validation over
        distinct images, the default because it needs no second fit and chose the more
        accurate machines; the leave-one-out error, whose estimate is closer where rows
        come several times; the error of a held-out fifth of the images, drawn evenly
        over classes (or targets), after which all are fitted anew; or the last round,
        with the ridge by GCV. Where `groups` are given to `fit`, the first two, and the
        ridge of the last round, are by the leave-one-group-out error, and held-out rows
        are whole groups. By GCV and leave-one-out, a round of learned
        feature layers must be better than those before by two per cent, which is its
        optimism. Where the metric is large against the data, as in deeper layers, only
        ``"holdout"`` is honest (see :ref:`optimistic`).
    %(class_weight)s%(store_covariance)simage_shape : tuple of int, default=None
        Rows and columns of an image, ``(h, w)``, or with channels ``(h, w, c)``, in
        this order for either value of `channels`. None takes it from `X` where that has
        three or four dimensions; a flat row is a square image where its width is a
        perfect square from 16 on, with a warning, else one row of pixels. Colour images
        in flat rows need it.
    channels : {"last", "first"}, default="last"
        How the pixels of a flat row are laid out, (h, w, c) or (c, h, w); the same
        for four-dimensional `X`. Images that are probably laid out the other way are an
        error unless `image_shape` is given.
    warm_start : bool, default=False
        True lets `fit` begin from the metrics that are there, of a former fit or of
        `refine`, and from the same filters.
    checkpoint : str, path-like or None, default=None
        A folder in which the fit is kept after every round. The same call, with the
        same data and parameters, goes on from there, with the result of a fit that was
        not interrupted; once it is finished, it returns it. One folder is for one fit;
        the checkpoint of another one is an error (see :ref:`checkpoints`).
    device : str, default="auto"
        ``"auto"`` is CUDA where torch finds it, else the CPU.
    dtype : {"auto", "float32", "float64"}, default="auto"
        Precision of kernel and features. ``"auto"`` is the smaller that holds the
        images exactly: float64 stays float64, uint8 is computed in float32. Ridge and
        eigenvalues are always float64.
    n_jobs : int, default=None
        Tasks that share tiles and blocks of images, through joblib. None is 1 unless in
        a :obj:`joblib.parallel_config` context, which may be that of a cluster; a
        single task uses the threads of torch.
    random_state : int, RandomState instance or None, default=None
        Seed of the draws: filters, `agop_samples`, held-out rows. None is a seed as
        well: fits are repeatable by default.
    verbose : int, default=0
        With 1, one line per round, and of loops of some seconds, also in predictions,
        how far they are: a bar on a terminal with rich, or else a line.

    Attributes
    ----------
    %(class_attributes)s%(covariance_attributes)skernel_ : kernel object
        The fitted kernel, with its bandwidth and patch metric where it has one.
    features_ : list of ConvFeatures
        The fitted layers whose maps the kernel compares. Where `selection` kept a lower
        layer of Deep ConvRFM, these are the layers below it.
    X_fit_ : ndarray of shape (n_samples, n_features)
        Rows that a kernel compares new ones with: the distinct training rows of
        positive weight in their own dtype, or the landmarks; behind feature layers
        under "gaussian" or "laplace", their maps as flat rows. Not there for "linear".
    dual_coef_ : ndarray of shape (n_samples, n_outputs)%(or_1d_dual)s
        Coefficients of the kernel as ``kernel_`` returns it, not scaled: the prediction
        is ``K @ dual_coef_ + intercept_``. Not there for "linear".
    coef_ : ndarray of shape (n_features_out, n_outputs)%(or_1d)s
        Of "linear": coefficients of the features, in the order (row, column of the
        grid, filter).
    intercept_ : %(intercept)s
        The intercept, which is not penalised.
    loo_prediction_ : ndarray of shape (n_samples,) or (n_samples, n_outputs)
        Outputs for each row of the fit of the machine without the image and its copies,
        or without its group, as %(outputs_of)s gives them; those of rows of weight 0
        are of the machine itself. Not there after `partial_fit`.
    alpha_, best_round_, best_layer_ : float, int, int
        The ridge, the round and the layer chosen. That layer predicts; 0 is the one
        that sees the images.
    patch_transform_ : ndarray of shape (d, d)
        The patch transform T of the layer that sees the images, symmetric, for patches
        of d = c·rows·columns entries in the order (channel, row, column). Its Frobenius
        norm is sqrt(d) where rounds begin from the identity.
    patch_agop_ : ndarray of shape (d, d)
        The patch AGOP of that layer, of the chosen predictor.
    patch_shape_ : tuple of int
        Rows and columns of a patch of that layer.
    learned_layers_ : list
        Fitted layers, and the kernel, that learned a metric, from the image up, each
        with its ``patch_transform_``, ``patch_agop_``, ``filter_transform_`` (the
        learned transform also where round 0 was kept), ``best_round_``, ``history_``.
    history_ : dict of ndarray
        One entry per round: ``round``, ``alpha``, ``criterion`` (by which `selection`
        chose), ``gcv``, ``loo_loss``, ``loo_score``
        (%(score)s of left-out rows), ``seconds_kernel``, ``seconds_solve``,
        ``seconds_agop``, ``spectrum`` (the eigenvalues of the metric T Tᵀ as shares of
        their sum, the largest first), ``bandwidth`` of a kernel that has one, and
        ``holdout_loss`` with
        ``selection="holdout"``, where all of them are of the fit that chose.
    choice_reason_ : str
        A sentence: the round that was kept, why, by how much its criterion is below the
        next best, and whether rounds ended early.
    stream_ : Stream
        After `partial_fit`: the sums over what it has seen, and a sample of the rows.
    image_shape_, channels_
        Shape (h, w, c) and layout of an image in the fit.
    scale_ : float
        Number that all images are divided by, in the fit and after it: the `scale` of
        the first feature layer, or else of the kernel; of ``"auto"`` 1 or 255.
    n_features_in_, feature_names_in_ : int, ndarray of shape (`n_features_in_`,)
        Number of features of a row, and their names where `X` had string names.

    See Also
    --------
    %(other)s
    skconvrfm.kernels : The kernels.
    skconvrfm.features.ConvFeatures : The feature layers.

    Notes
    -----
    Prediction uses fitted attributes alone, and of the parameters `device`,
    `dtype` and `n_jobs`.

    A fit with a kernel costs, per round, ``n² / 2`` pairs of images times locations
    times layers, a decomposition of ``n³``, and the AGOP; see "What costs what"
    in the guide. It is refused where its matrices do not fit in free memory, and warns
    from ten minutes on. With M `landmarks` it costs n·M pairs twice, and ``M³`` and
    ``n M²`` operations. With "linear" and D features, a round costs n times the
    convolution and D², and a decomposition of D³ (or of n³ where rows are
    fewer). Sample weights count rows: weight 2 is the row twice, by every `selection`.
    Equal rows are one image with the sum of their weights; weights that sum to less
    than the number of distinct images are scaled to mean one.%(more_notes)s

    References
    ----------
    Beaglehole, Radhakrishnan, Pandit, Belkin, "Mechanism of feature learning in
    convolutional neural networks", arXiv:2309.00570, Algorithm 1."""

IMAGES = """Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, h, w) or \
                (n_samples, h, w, c)
            Images, laid out as in `fit`; labels of a torch Dataset are left out."""

FIT = """X : array-like of shape (n_samples, n_features), (n_samples, h, w) or \
                (n_samples, h, w, c)
            Images, or rows of pixels, of any real dtype; also a list of images of one
            size, arrays or of PIL, or a torch Dataset or DataLoader of pairs (image,
            label), whose labels are `y` where that is None. Its images are read once,
            mostly of shape (c, h, w), which ``channels="first"`` says.
            Of a memmap, a dataset of h5py or zarr, or another array that is read by
            slices, feature layers and landmarks hold no more than blocks; a kernel of
            patches without landmarks reads it whole."""

WEIGHTS = """sample_weight : array-like of shape (n_samples,), default=None
            Weights; a row of weight 2 counts as two rows, one of weight 0 not at all.\
"""

GROUPS = """groups : array-like of shape (n_samples,), default=None
            Labels, one per row, that related rows share: views of one object, frames of
            one film, slices of one patient. Whole groups are left out or held out:
            ``selection="gcv"`` and ``"loo"`` are then both the leave-one-group-out
            error, exact and without refitting, as are `loo_prediction_` and the
            probabilities' calibration. Groups that have copies of an image count as
            one. Without groups, near-duplicates make the criteria too optimistic."""

RETURNS = """
        Returns
        -------
        self : object
            The fitted estimator. If the fit fails or is interrupted, it is as it was.

        Raises
        ------
        ValueError
            If X, y or a parameter is not usable; the message says what to do.
        MemoryError
            If the matrices of the fit exceed the free memory.
        OSError
            If the checkpoint cannot be written or read."""

_STREAM = """For ``kernel="linear"`` and for `landmarks`, where sums over the images
        determine the machine: the result is that of one fit to all images, in whatever
        order they came. The first call draws landmarks and filters from its images,
        which should be typical, unless `fit` has learned a metric before: that, and its
        filters, then stay, and landmarks and sums begin with the images of this call.
        The ridge is chosen by GCV, or for ``selection="loo"`` by the leave-one-out
        error of a sample of the rows.
        A call costs a decomposition of all features: give many images at a time.

        %(rows)s"""

_ROWS = """Parameters
        ----------
        %(fit)s
        y : array-like of shape (n_samples,)%(or_2d)s
            %(targets)s."""

STORE_COVARIANCE = """store_covariance : bool or "auto", default="auto"
        True keeps what ``predict(X, return_std=True)`` needs, in memory and in saved
        files: n² numbers of 8 bytes of a kernel of n distinct images, 2 M² of M
        `landmarks`, and D times the smaller of n and D of "linear" with D features.
        ``"auto"`` keeps them where they take at most a quarter of ``working_memory`` of
        :func:`sklearn.get_config`, by default 256 MiB or n = 5792 (see
        :ref:`uncertainty`).
    """

COVARIANCE_ATTRIBUTES = """noise_variance_ : float or ndarray of shape (n_outputs,)
        See `store_covariance`: variance of a target about the function that is
        learned, from the residuals of left-out rows.
    covariance_ : Covariance
        See `store_covariance`: the variance of that function at any image, in units
        of the noise.
    """

_PREDICTED = "\n\n        Returns\n        -------"


def documented(**words):
    """Return a class decorator that fills in what both estimators' texts share."""
    texts = {"reference": _REFERENCE, "stream": _STREAM, "rows": _ROWS, "fit": FIT}
    texts |= {"weights": WEIGHTS, "groups": GROUPS, "returns": RETURNS}
    texts |= {"image_rows": IMAGES, "images": IMAGES + _PREDICTED}
    return fill_in(**texts, **words)


def fill_in(**texts):
    """Return a class decorator that puts texts in the place of their ``%(name)s``."""

    def fill(cls):
        # What available_if makes of a method has it as ``fn``.
        members = [getattr(member, "fn", member) for member in vars(cls).values()]
        for item in (cls, *filter(inspect.isfunction, members)):
            # Texts are indented as the docstrings that they stand in.
            indent = "\n" + (4 if item is cls else 8) * " "
            doc = inspect.cleandoc(item.__doc__ or "")
            for name, text in texts.items():
                doc = doc.replace(f"%({name})s", text.replace(indent, "\n"))
            item.__doc__ = doc or None
        return cls

    return fill
