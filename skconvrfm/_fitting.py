"""One fit of an estimator: choice, refit, reports, and the fitted attributes."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import numpy as np

from ._input import check_weights
from .compute.images import unscaled
from .compute.progress import LONG_CALL, in_words
from .learning.checkpoint import Checkpoint, describe, digest
from .learning.choice import describe_choice
from .learning.rounds import (
    Schedule,
    StagePlan,
    Watcher,
    best_stage,
    choose_alternative,
    choose_bandwidth,
    fit_stages,
)
from .learning.stream import Stream

# Parameters that a checkpoint does not depend on.
_NOT_OF_THE_RESULT = {"device", "n_jobs", "verbose", "checkpoint"}
# selection="holdout": part of the rows that chooses.
_HOLDOUT_FRACTION = 0.2


class Fitting(Watcher):
    """One fit of an estimator: the choice, perhaps a refit, the fitted attributes."""

    checkpoint = None
    callbacks = None

    def __init__(self, estimator, recipe, common, output_shape):
        self._estimator, self._recipe = estimator, recipe
        self._common, self._output_shape = common, output_shape

    def open_checkpoint(self, X, y, sample_weight, groups):
        """Return the context of this fit's `Checkpoint`, or of None."""
        estimator, recipe = self._estimator, self._recipe
        if estimator.checkpoint is None:
            return nullcontext()
        from . import __version__  # not there yet while this module is imported

        parameters = {"estimator": type(estimator).__name__, "version": __version__}
        resolved = {
            "kernel": recipe.kernel,
            "features": recipe.features,
            "alpha": recipe.alphas,
            "image_shape": self._common["image_shape_"],
        }
        for name, value in (estimator.get_params(deep=False) | resolved).items():
            if name not in _NOT_OF_THE_RESULT:
                parameters[name] = describe(value)
        data = {"X": X, "y": y, "sample_weight": check_weights(sample_weight, X)}
        if groups is not None:
            data["groups"] = groups
        if recipe.start is not None:
            parameters["scale"] = recipe.scale
            for index, transform in enumerate(recipe.start.transforms):
                if transform is not None:
                    data[f"metric {index} of the former fit"] = transform
        digests = {name: digest(array) for name, array in data.items()}
        checkpoint = Checkpoint(estimator.checkpoint, parameters, digests)
        if estimator.verbose and checkpoint.n_rounds:
            print(
                f"[{type(estimator).__name__}] goes on after {checkpoint.n_rounds} "
                f"rounds in checkpoint={str(estimator.checkpoint)!r}"
            )
        return checkpoint

    def run(self, data):
        """Return the fitted attributes of a fit to some rows."""
        estimator = self._estimator
        images = self._recipe.resources.on_gpu(data.images)
        data = replace(data, images=images)
        if estimator.selection != "holdout":
            return self._attributes(data, self._fit_stages("fit", data))
        kept, held_out = data.lineup.split(_HOLDOUT_FRACTION, data.groups)
        if min(len(kept), len(held_out)) < 2:
            raise ValueError(
                f"selection='holdout' leaves {len(kept)} rows to fit on and "
                f"{len(held_out)} to choose by, of {len(data.targets)}; take "
                "selection='gcv' for so few."
            )
        stages = self._fit_stages("choice", data.take(kept), data.take(held_out))
        index = best_stage([stage.best for stage in stages], "holdout")
        chosen = stages[: index + 1]
        plan = [StagePlan.of(stage) for stage in chosen]
        choices = tuple(stage.best.model.choice for stage in chosen)
        self._recipe = replace(self._recipe, choices=choices)
        refitted = self._fit_stages("refit", data, plan=plan)
        # The history is that of the choice, with the criterion that chose.
        pairs = zip(refitted, chosen, strict=False)
        refitted = [replace(stage, history=former.history) for stage, former in pairs]
        return self._attributes(data, refitted, "last")

    def add(self, former, data, rows, total):
        """Return the fitted attributes after images were added to a former `Stream`.

        That is None where they are the first. The images come as flat rows as well;
        ``total`` is the sum of their weights before those of classes.
        """
        estimator = self._estimator
        if former is not None:
            told = {"held": former.landmarks, "multiple": former.multiple}
            self._recipe = replace(self._recipe, **told)
        self._recipe = self._recipe.with_held(data)
        recipe = replace(self._recipe, rng=copy.deepcopy(self._recipe.rng))
        # There are no rounds, and of held-out rows there are no sums.
        selection = "loo" if estimator.selection == "loo" else "gcv"
        schedule = Schedule(0, estimator.agop_power, selection)
        model = _settled(recipe.model(data, None, recipe.held), schedule)
        moments = model.design().moments()
        stream = Stream.of(moments, total, rows, data, recipe.held, model.multiple)
        if former is not None:
            stream = former + stream
        units = stream.in_units()
        sample = units.sample
        columns = (sample.rows, sample.targets, sample.weights, None)
        shape, rng = self._common["image_shape_"], copy.deepcopy(self._recipe.rng)
        scale = self._common["scale_"]
        _, data = estimator._training_set(*columns, shape, scale, rng)
        data = replace(data, scatter=sample.scatter)
        self._recipe = recipe.summed(model, units.moments)
        self._phase, self._data = None, data
        stages = fit_stages(self._recipe, data, schedule, self)
        attributes = self._attributes(data, stages, "last")
        del attributes["loo_prediction_"]  # of a sample
        return attributes | {"stream_": stream}

    def _fit_stages(self, phase, data, held_out=None, plan=None):
        """Fit all stages on some rows; a "choice" is followed by a "refit"."""
        estimator, recipe = self._estimator, self._recipe
        self._data, self._plan, self._name = data, plan, phase
        self._phase = None if self.checkpoint is None else self.checkpoint.phase(phase)
        options = (estimator.n_rounds, estimator.agop_power, estimator.selection)
        options += (estimator.n_iter_no_change,)
        # With held-out rows there are two fits, with the same filters.
        recipe = replace(recipe, rng=copy.deepcopy(recipe.rng))
        return fit_stages(recipe, data, Schedule(*options, plan), self, held_out)

    def score(self, loo_prediction):
        """Return the score of the predictions of left-out rows."""
        seen, score = self._data.observations, self._estimator._score_targets
        rows = seen.targets, loo_prediction[seen.image], seen.weights
        return score(*rows, **self._common)

    def load(self, stage, model):
        """Return the progress of a stage in the checkpoint, or None."""
        return None if self._phase is None else self._phase.load(stage, model)

    def save(self, stage, progress):
        """Keep the progress of a stage in the checkpoint."""
        if self._phase is not None:
            self._phase.save(stage, progress)

    def report(self, stages, best, history, ends):
        """Print a line about the round, and tell the callbacks, which may stop."""
        estimator, index = self._estimator, len(stages)
        if self.callbacks is None:
            return False
        if estimator.verbose:
            print(self._describe_round(index, history, ends))
            if ends:
                print(f"[{type(estimator).__name__}] {self._describe(history, best)}")
        n_stages, selection = self._recipe.n_stages, estimator.selection
        if self._plan is not None:
            n_stages, selection = len(self._plan), "last"
        last = index + 1 == n_stages and ends
        return self.callbacks.end_round(
            lambda: self._attributes(self._data, stages, selection, (best, history)),
            last and self._name != "choice",
        )

    def _describe(self, history, best):
        """Return a sentence about the round that was kept."""
        estimator = self._estimator
        options = estimator.selection, estimator.n_rounds
        return describe_choice(history, best.index, *options)

    def _describe_round(self, index, history, ends):
        """Return one line about the last round of a stage."""
        last = {key: values[-1] for key, values in history.items()}
        seconds = sum(last[key] for key in last if key.startswith("seconds"))
        estimator, n_stages = self._estimator, self._recipe.n_stages
        layer = f"layer {index + 1}/{n_stages}  " if n_stages > 1 else ""
        here = 0 if ends else estimator.n_rounds - last["round"]
        left = (here + (n_stages - index - 1) * (estimator.n_rounds + 1)) * seconds
        rest = f", at most {in_words(left)} left" if left >= LONG_CALL else ""
        return (
            f"[{type(estimator).__name__}] {layer}round {last['round']}/"
            f"{estimator.n_rounds}  alpha={last['alpha']:.0e}  gcv={last['gcv']:.4g}  "
            f"loo_loss={last['loo_loss']:.4g}  loo_score={last['loo_score']:.4f}  "
            f"{seconds:.1f}s{rest}"
        )

    def _attributes(self, data, stages, selection=None, unfinished=None):
        """Return the fitted attributes of stages, and perhaps an unfinished one."""
        estimator = self._estimator
        rounds = [(stage.best, stage.history) for stage in stages]
        if unfinished is not None:
            rounds.append(unfinished)
        selection = selection or estimator.selection
        index = best_stage([best for best, _ in rounds], selection)
        best, history = rounds[index]
        stage = stages[index] if index < len(stages) else None
        below = [_learned_features(stage) for stage in stages[:index]]
        solution = best.solution
        learned = _learned(best, history, stage)
        features, kernel, kept = best.model.fitted(below, solution.coef, learned)
        for name in {"coef_", "dual_coef_"} & kept.keys():
            kept[name] = self._shape(kept[name])
        if "dual_coef_" in kept and "X_fit_" not in kept:
            kept["X_fit_"] = self._flat_rows(rounds[0][0].model.centre_images)
        if solution.covariance is not None:
            kept["noise_variance_"] = self._shape(solution.noise)
            kept["covariance_"] = solution.covariance
        if learned:
            sees_images = features[0] if features else kernel
            kept["patch_shape_"] = sees_images.layer_.patch
            kept["patch_transform_"] = sees_images.patch_transform_
            if stage is not None:
                kept["patch_agop_"] = sees_images.patch_agop_
        seen = data.observations
        left_out = solution.loo_prediction[seen.image]
        calibrated = left_out, seen.targets, seen.weights
        is_flat = self._output_shape == () and left_out.shape[1] == 1
        return {
            **self._common,
            "kernel_": kernel,
            "features_": features,
            "best_layer_": index,
            "intercept_": self._shape(solution.intercept),
            "alpha_": solution.alpha,
            "best_round_": best.index,
            "history_": _as_arrays(history),
            "choice_reason_": self._describe(history, best),
            **kept,
            "loo_prediction_": left_out[:, 0] if is_flat else left_out,
            **estimator._calibrate(*calibrated, **self._common),
        }

    def _flat_rows(self, images):
        """Return images of the first stage as flat rows, laid out as they came."""
        images = unscaled(images)
        if self._estimator.channels == "first":
            images = images.transpose(0, 3, 1, 2)
        return np.array(images.reshape(len(images), -1))

    def _shape(self, coef):
        """Return one column per output for y of shape (n, k), none for (n,)."""
        return self._estimator._shape_coef(coef, self._output_shape)


def _settled(model, schedule):
    """Return a model with all choices made, of which sums over the rows are taken."""
    choice, _ = choose_alternative(model, schedule)
    model = model.alternatives[choice]
    multiple = choose_bandwidth(model, schedule)
    if model.has_candidates:
        model = model.with_filters()
    model = model.with_metric(None)
    return model if multiple is None else model.stretched(multiple)


def _learned(best, history, stage):
    """Return what each layer of a model has learned, a list of dict."""
    learned = [
        {
            "patch_transform": transform,
            "best_round": best.index,
            "alpha": best.solution.alpha,
            "history": _as_arrays(history, layer),
        }
        for layer, transform in enumerate(best.transforms)
    ]
    if stage is not None:
        triples = zip(learned, stage.agops, stage.learned_transforms, strict=True)
        for layer, agop, transform in triples:
            layer |= {"patch_agop": agop.agop, "filter_transform": transform}
            if agop.importance is not None:
                layer["importance"] = agop.importance
    return learned


def _learned_features(stage):
    """Return the fitted feature layer of a stage of Deep ConvRFM."""
    [learned] = _learned(stage.best, stage.history, stage)
    return stage.features.fitted(stage.bank, stage.maps, **learned)


def _as_arrays(history, layer=0):
    """Return the history with arrays for lists, and the spectrum of one layer."""
    arrays = {k: np.array(values) for k, values in history.items() if k != "spectra"}
    if history["spectra"] and history["spectra"][0]:
        arrays["spectrum"] = np.array([round_[layer] for round_ in history["spectra"]])
    return arrays
