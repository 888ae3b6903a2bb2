"""The classifier: which attack a row looks like. Two hidden layers of 8 tanh and a softmax over the classes.

It sees the same clipped z as the autoencoder. Importing this module imports TensorFlow.
"""

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.scaling import Array
from trainer import autoencoder
from trainer.config import Training

WIDTH = 8


def build(columns: int, classes: int) -> Any:
    """An untrained network (n, columns) -> class probabilities (n, classes)."""
    return keras.Sequential(
        [
            keras.layers.Input((columns,), name="z"),
            keras.layers.Dense(WIDTH, activation="tanh", name="hidden1"),
            keras.layers.Dense(WIDTH, activation="tanh", name="hidden2"),
            keras.layers.Dense(classes, activation="softmax", name="classes"),
        ],
        name="classifier",
    )


def train(
    rows: tuple[Array, NDArray[np.integer]],
    validation: tuple[Array, NDArray[np.integer]],
    classes: int,
    training: Training,
    seed: int,
) -> tuple[Any, dict[str, Any]]:
    """Fit on (clipped z, class numbers); rare classes weigh as much as common ones. Returns network and history."""
    inputs, numbers = rows
    share = np.bincount(numbers, minlength=classes) * (classes / len(numbers))
    autoencoder.start(seed)
    model = build(inputs.shape[1], classes)
    one_hot = np.eye(classes, dtype=np.float32)
    history = autoencoder.run_epochs(
        model,
        keras.losses.CategoricalCrossentropy(),
        (inputs, one_hot[numbers]),
        (validation[0], one_hot[validation[1]]),
        training,
        seed,
        weights=(1 / share).astype(np.float32)[numbers],
    )
    return model, history


def confusion(truth: NDArray[np.integer], guess: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Rows of class i taken for class j, shape (classes, classes).

    >>> confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    return np.bincount(truth * classes + guess, minlength=classes * classes).reshape(classes, classes)
