"""Base of the regressor: the covariance of its predictions."""

from __future__ import annotations

import sys
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from ._base import DEFAULT_ALPHAS, ConvRFM, Features
from ._sklearn_compat import StrOptions
from ._typing import Channels, Device, Dtype, File, ImageShape, RandomState, Selection
from .compute.progress import with_progress
from .compute.torch_state import plain_torch
from .kernels.base import BaseKernel
from .learning.fitted import check_not_negative, check_numbers
from .learning.uncertainty import outputs_and_variances

_MEMORY_SHARE = 4  # part of the memory of a computation that is kept by default


class BaseRegressor(ConvRFM):
    """Predictions with standard deviations, where a fit kept the covariance."""

    _parameter_constraints: dict = {
        **ConvRFM._parameter_constraints,
        "store_covariance": ["boolean", StrOptions({"auto"})],
    }

    def __init__(
        self,
        kernel: str | BaseKernel = "ntk",
        features: Features = None,
        *,
        alpha: ArrayLike = DEFAULT_ALPHAS,
        n_rounds: int = 4,
        n_iter_no_change: int | None = 1,
        agop_power: float = 0.5,
        agop_samples: float | Literal["auto"] | None = "auto",
        landmarks: int | None = None,
        selection: Selection = "gcv",
        store_covariance: bool | Literal["auto"] = "auto",
        image_shape: ImageShape = None,
        channels: Channels = "last",
        warm_start: bool = False,
        checkpoint: File | None = None,
        device: Device = "auto",
        dtype: Dtype = "auto",
        n_jobs: int | None = None,
        random_state: RandomState = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            kernel,
            features,
            alpha=alpha,
            n_rounds=n_rounds,
            n_iter_no_change=n_iter_no_change,
            agop_power=agop_power,
            agop_samples=agop_samples,
            landmarks=landmarks,
            selection=selection,
            image_shape=image_shape,
            channels=channels,
            warm_start=warm_start,
            checkpoint=checkpoint,
            device=device,
            dtype=dtype,
            n_jobs=n_jobs,
            random_state=random_state,
            verbose=verbose,
        )
        self.store_covariance = store_covariance

    def _covariance_bytes(self, resources):
        """Return the bytes that the covariance may take."""
        if self.store_covariance == "auto":
            return resources.memory // _MEMORY_SHARE
        return sys.maxsize if self.store_covariance else 0

    @with_progress
    @plain_torch()
    def _predict_with_std(self, X):
        """Return f(x) and the standard deviation of targets, both (n, n_outputs)."""
        check_is_fitted(self)
        if not hasattr(self, "covariance_"):
            raise ValueError(
                "return_std=True needs the covariance of the machine, which the fit "
                f"did not keep, for store_covariance={self.store_covariance!r}: take "
                "store_covariance=True, and fit the estimator again."
            )
        *machine, intercept = self._machine(X)
        outputs, variances = outputs_and_variances(self.covariance_, *machine)
        noise = np.reshape(self.noise_variance_, -1)
        std = np.sqrt(np.outer(1 + variances, noise))
        return self._finite(outputs + intercept), self._finite(std)

    def _check_fitted(self):
        machine = super()._check_fitted()
        if hasattr(self, "covariance_"):
            coef, _, intercept = machine
            self.covariance_.check("covariance_", len(coef))
            noise = np.reshape(self.noise_variance_, -1)
            for number in check_numbers("noise_variance_", noise, intercept.shape):
                check_not_negative("noise_variance_", float(number))
        return machine
