"""scikit-learn's fit callbacks where it has them (1.9), and nothing where not."""

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:  # scikit-learn < 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands in for scikit-learn's mixin: a context that nobody listens to."""

        def _init_callback_context(self, **_):
            return _SilentContext()


class _SilentContext:
    """A callback context without callbacks."""

    def subcontext(self, **_):
        return self

    def call_on_fit_task_begin(self, **_):
        return self

    def call_on_fit_task_end(self, **_):
        return False


class RoundCallbacks:
    """Tells callbacks of the fit and of every round.

    Parameters
    ----------
    estimator : estimator
        The estimator that is being fitted.
    n_tasks : int
        Rounds at most.
    X, y : ndarray
        The training data.
    sample_weight : ndarray or None
        Its weights.
    """

    def __init__(self, estimator, n_tasks, X, y, sample_weight):
        metadata = {} if sample_weight is None else {"sample_weight": sample_weight}
        self._task = {"estimator": estimator, "X": X, "y": y, "metadata": metadata}
        self._fit = estimator._init_callback_context(max_subtasks=n_tasks)
        self._fit.call_on_fit_task_begin(**self._task)
        self._begin_round()

    def _begin_round(self):
        self._round = self._fit.subcontext(task_name="round")
        self._round.call_on_fit_task_begin(**self._task)

    def end_round(self, fitted_attributes, last):
        """Tell of the end of a round; True where a callback asks to stop.

        Parameters
        ----------
        fitted_attributes : callable
            Gives the fitted attributes as if the fit ended here.
        last : bool
            Whether no round follows.
        """
        stop = self._round.call_on_fit_task_end(
            **self._task, reconstruction_attributes=fitted_attributes
        )
        if not (stop or last):
            self._begin_round()
        return stop

    def end_fit(self):
        """Tell of the end of the fit."""
        self._fit.call_on_fit_task_end(**self._task, reconstruction_attributes={})
