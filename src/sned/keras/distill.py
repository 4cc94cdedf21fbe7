"""A model that trains another one to answer as a third does."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from sned.errors import ModelError, UserError

TINY = 1e-7
"""Probabilities below this are taken for it, so that they have a logarithm."""


class Distiller(keras.Model):  # type: ignore[misc]
    """Trains `student` through `fit` to answer as `teacher` does, and as the labels say where there are any.

    `loss = (1 - weight) * loss(y, s(x)) + weight * T² * KL(p_T(t(x)) || p_T(s(x)))` with `p_T` the softmax of the
    logits over the temperature `T`, averaged over the inputs. With `temperature=None` the second term is the mean
    squared difference of the outputs, for networks that do not classify.

    Args:
        student: a built model, such as a pruned one; `fit` trains it in place.
        teacher: a model of the same inputs and outputs, such as the dense one; it is left as it is.
        temperature: `T`, above 0; or None.
        weight: of the teacher's answers, in (0, 1]; 1 needs no labels.
        from_logits: whether the outputs are logits; None: whether the last layer of the student is no softmax.

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
        super().__init__(name=f"{student.name}_distiller")
        if temperature is not None and temperature <= 0:
            raise UserError(f"`temperature` must be above 0, got {temperature}.")
        if not 0 < weight <= 1:
            raise UserError(f"`weight` must be in (0, 1], got {weight}.")
        if not student.built:
            raise ModelError("The student must have its variables: call it on an input once.")
        self.student = student
        self._teacher = _Aside(teacher)
        self.temperature, self.weight = temperature, weight
        self.from_logits = not _ends_in_softmax(student) if from_logits is None else from_logits
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """What the student answers."""
        return self.student(inputs, training=training)

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
        own = super().compute_loss(x, y, y_pred, sample_weight, training) if labelled else 0.0
        if not training and labelled:
            return own
        wanted = self._teacher.model(x, training=False)
        pairs = zip(keras.tree.flatten(wanted), keras.tree.flatten(y_pred), strict=True)
        soft = sum(self._difference(ops.stop_gradient(theirs), mine) for theirs, mine in pairs)
        return (1 - self.weight) * own + self.weight * soft

    def _difference(self, wanted: Any, got: Any) -> Any:
        if self.temperature is None:
            return ops.mean(ops.square(wanted - got))
        teacher, student = (
            ops.log_softmax((x if self.from_logits else ops.log(ops.maximum(x, TINY))) / self.temperature)
            for x in (wanted, got)
        )
        divergence = ops.sum(ops.exp(teacher) * (teacher - student), axis=-1)
        return self.temperature**2 * ops.mean(divergence)


class _Aside:
    """Keeps a model from being tracked as a part of another."""

    def __init__(self, model: Any) -> None:
        self.model = model


def _ends_in_softmax(model: Any) -> bool:
    last = model.layers[-1] if model.layers else model
    return (
        isinstance(last, keras.layers.Softmax)
        or getattr(last, "activation", None) is keras.activations.softmax
    )
