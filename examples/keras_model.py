"""A Keras 3 model on any backend: pruned, trained on with its teacher, and still plain Keras.

KERAS_BACKEND=torch python examples/keras_model.py        or tensorflow, or jax
"""

from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits

import sned
import sned.keras

images, labels = load_digits(return_X_y=True)
inputs, targets = (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32), labels
train, test = slice(0, 1400), slice(1400, None)

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
        keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10),
    ]
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
model.fit(inputs[train], targets[train], batch_size=64, epochs=5, verbose=0)

result = sned.prune(model, inputs[:2], budget=sned.Budget(macs="40%"), calibration=inputs[:512])
small = result.model
small.compile(loss=loss, metrics=["accuracy"])
print(f"accuracy {model.evaluate(inputs[test], targets[test], verbose=0)[1]:.1%} before")
print(f"         {small.evaluate(inputs[test], targets[test], verbose=0)[1]:.1%} after, without training")

distiller = sned.keras.Distiller(small, model)
distiller.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
distiller.fit(inputs[train], targets[train], batch_size=64, epochs=3, verbose=0)
print(f"         {small.evaluate(inputs[test], targets[test], verbose=0)[1]:.1%} trained on with its teacher")

file = Path("out/examples/small.keras")
file.parent.mkdir(parents=True, exist_ok=True)
small.save(file)
again = keras.saving.load_model(file)  # takes no sned
print(f"{file}: {model.count_params():,} parameters before, {again.count_params():,} after")
