"""A model that trains another one to answer as a third does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from sned.errors import ModelError, UserError

TINY = 1e-7
"""Probabilities below this are taken for it, so that they have a logarithm."""


class Distiller(keras.Model):  # type: ignore[misc]
    """Trains `student` through `fit` to answer as `teacher` does, and as the labels say where there are any.

    `loss = (1 - weight) * loss(y, s(x)) + weight * T² * KL(p_T(t(x)) || p_T(s(x))) + penalties` with `p_T` the softmax
    of the logits over the temperature `T`, averaged over the inputs, whose weights count for the labels alone, and
    with what the regularizers of the student ask for. Each output is taken for what its answers are: classes
    where they are probabilities that sum to 1, or logits of several classes; units that are on or off, each by itself
    (`p_T` is then a sigmoid), where they are in [0, 1]. What one unit answers beyond that is a quantity: there, and
    with `temperature=None` everywhere, the second term is the mean squared difference of the outputs.

    What `save` writes, and `ModelCheckpoint` by it, is the student, which loads without sned.

    Args:
        student: a built model, such as a pruned one; `fit` trains it in place.
        teacher: a model of the same inputs and outputs, such as the dense one; it is left as it is.
        temperature: `T`, above 0; or None.
        weight: of the teacher's answers, in (0, 1]; 1 needs no labels.
        from_logits: whether the outputs are logits (True) or probabilities (False); None: see above.

    Example:
        >>> distiller = sned.keras.Distiller(small, dense)
        >>> distiller.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        >>> distiller.fit(images, labels, epochs=5)          # `small` is trained

    Reference:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """

    def __init__(
        self,
        student: Any,
        teacher: Any,
        *,
        temperature: float | None = 4.0,
        weight: float = 0.9,
        from_logits: bool | None = None,
    ) -> None:
        for role, model in (("student", student), ("teacher", teacher)):
            if not isinstance(model, keras.Model):
                raise ModelError(f"The {role} must be a Keras model, got {type(model).__name__}.")
        super().__init__(name=f"{student.name}_distiller")
        if temperature is not None and not (
            isinstance(temperature, int | float | np.number) and temperature > 0
        ):
            raise UserError(f"`temperature` must be a number above 0, or None, got {temperature!r}.")
        if not (isinstance(weight, int | float | np.number) and 0 < weight <= 1):
            raise UserError(f"`weight` must be a number in (0, 1], got {weight!r}.")
        if not student.built:
            raise ModelError("The student must have its variables: call it on an input once.")
        self.student = student
        self._teacher = _Aside(teacher)
        self.temperature, self.weight, self.from_logits = temperature, weight, from_logits
        self.built = True
        if getattr(student, "outputs", None) and getattr(teacher, "outputs", None):
            _pairs(teacher.outputs, student.outputs)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """What the student answers."""
        return self.student(inputs, training=training)

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save the student, as `keras.Model.save` does."""
        self.student.save(*args, **kwargs)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The loss of a batch; see the class."""
        labelled = y is not None and self.weight < 1
        penalties = sum(map(self._aggregate_additional_loss, self.losses))
        own = super().compute_loss(x, y, y_pred, sample_weight, training) if labelled else penalties
        if not training and labelled:
            return own
        wanted = self._teacher.model(x, training=False)
        pairs = _pairs(wanted, y_pred)
        soft = self._aggregate_additional_loss(
            sum(self._difference(ops.stop_gradient(theirs), mine) for theirs, mine in pairs)
        )
        return (1 - self.weight) * own + self.weight * (soft + penalties)  # `own` has them too

    def _difference(self, wanted: Any, got: Any) -> Any:
        """Of an output: `T² * KL`, or of squares where it is not of classes."""
        both = [ops.cast(x, "float32") for x in (wanted, got)]
        several = len(wanted.shape) > 1 and wanted.shape[-1] > 1

        if self.temperature is None:
            return _squares(*both)
        if self.from_logits:
            return self._divergence(_itself if several else _odds, both)
        shares = ops.logical_and(*map(_between_0_and_1, both)) if self.from_logits is None else True
        if several:
            shares = ops.logical_and(shares, ops.logical_not(_sum_to_1(both[0])))
        other = self._divergence(_logits, both) if several else _squares(*both)
        # Not `cond`, of which TensorFlow prints that its type inference failed.
        return ops.where(shares, self._divergence(_log_odds, both), other)

    def _divergence(self, logits: Callable[[Any], Any], both: Sequence[Any]) -> Any:
        """`T² * KL(p_T(wanted) || p_T(got))`, averaged; of logits, classes last."""
        temperature = self.temperature
        assert temperature is not None
        teacher, student = (ops.log_softmax(logits(x) / temperature) for x in both)
        return temperature**2 * ops.mean(ops.sum(ops.exp(teacher) * (teacher - student), axis=-1))


def _squares(wanted: Any, got: Any) -> Any:
    return ops.mean(ops.square(wanted - got))


def _itself(x: Any) -> Any:
    return x


def _logits(x: Any) -> Any:
    """Logits of classes; the logarithm of what are probabilities."""
    return ops.where(_sum_to_1(x), _log(x), x)


def _log(x: Any) -> Any:
    return ops.log(ops.maximum(x, TINY))


def _odds(x: Any) -> Any:
    """The logits of on and of off, from logits of on."""
    return ops.stack([x, ops.zeros_like(x)], axis=-1)


def _log_odds(x: Any) -> Any:
    """The logits of on and of off, from probabilities of on."""
    return _log(ops.stack([x, 1 - x], axis=-1))


def _between_0_and_1(x: Any) -> Any:
    return ops.all(ops.logical_and(x >= 0, x <= 1))


def _sum_to_1(x: Any) -> Any:
    """Whether answers are probabilities of classes; those in half precision sum to about 1."""
    return ops.logical_and(ops.all(x >= 0), ops.all(ops.abs(ops.sum(x, axis=-1) - 1) < 1e-2))


def _pairs(wanted: Any, got: Any) -> list[tuple[Any, Any]]:
    """The outputs of the teacher beside those of the student.

    Raises:
        ModelError: they have different shapes.
    """
    theirs, mine = keras.tree.flatten(wanted), keras.tree.flatten(got)
    shapes = [[tuple(x.shape[1:]) for x in outputs] for outputs in (theirs, mine)]
    if shapes[0] != shapes[1]:
        raise ModelError(
            "The student must have the outputs of its teacher, but without the batch theirs are of shapes "
            f"{', '.join(map(str, shapes[0]))} and its own {', '.join(map(str, shapes[1]))}."
        )
    return list(zip(theirs, mine, strict=True))


class _Aside:
    """Keeps a model from being tracked as a part of another."""

    def __init__(self, model: Any) -> None:
        self.model = model
