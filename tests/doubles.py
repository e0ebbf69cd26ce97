"""Functions and callbacks that stand in for others."""


def failing(error, function=None, at=0):
    """Return a function that raises at one of its calls, and else does its work."""
    calls = iter(range(10**9))

    def call(*args, **kwargs):
        if next(calls) == at:
            raise error
        return function(*args, **kwargs)

    return call


class Callback:
    """Callback of scikit-learn 1.9 that does nothing, to derive others from."""

    def setup(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context, **_):
        pass

    def on_fit_task_end(self, estimator, context, **_):
        pass

    def teardown(self, estimator, context):
        pass
