"""A callback of scikit-learn 1.9 that does nothing, to derive others from."""


class Callback:
    """Has all the methods that a fit calls."""

    def setup(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context, **_):
        pass

    def on_fit_task_end(self, estimator, context, **_):
        pass

    def teardown(self, estimator, context):
        pass
