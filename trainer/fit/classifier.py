"""The classifier of attacks: hidden tanh layers (two of 8 by default), a softmax over the classes.

Its input is the same clipped z as the autoencoder's. Importing this module imports TensorFlow.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.scaling import Array
from trainer.config import ClassifierSettings, Training
from trainer.fit import autoencoder
from trainer.fit.libraries import keras


def build(columns: int, classes: int, settings: ClassifierSettings | None = None) -> Any:
    """Return an untrained network (n, columns) -> class probabilities (n, classes).

    It has 1,027 parameters at 115 columns and 3 classes, 1,045 at 5. With the `clipped` head the outputs need not sum
    to 1.
    """
    settings = settings or ClassifierSettings()
    layers = [keras.layers.Input((columns,), name="z")]
    layers += [
        keras.layers.Dense(width, activation="tanh", name=f"hidden{i}") for i, width in enumerate(settings.hidden, 1)
    ]
    if settings.head == "softmax":
        layers.append(keras.layers.Dense(classes, activation="softmax", name="classes"))
    else:
        layers += [keras.layers.Dense(classes, name="classes"), autoencoder.clipped()]
    return keras.Sequential(layers, name="classifier")


def train(
    rows: tuple[Array, NDArray[np.integer]],
    validation: tuple[Array, NDArray[np.integer]],
    classes: int,
    training: Training,
    seed: int,
    settings: ClassifierSettings | None = None,
    watch: autoencoder.Watch | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Fit on (clipped z, class numbers), rare classes weighing as much as common ones; return network and history.

    The loss is the cross-entropy; with the `clipped` head, whose outputs may all be 0, it is the squared error.
    """
    settings = settings or ClassifierSettings()
    inputs, numbers = rows
    share = np.bincount(numbers, minlength=classes) * (classes / len(numbers))
    autoencoder.start(seed)
    model = build(inputs.shape[1], classes, settings)
    one_hot = np.eye(classes, dtype=np.float32)
    history = autoencoder.run_epochs(
        model,
        keras.losses.CategoricalCrossentropy() if settings.head == "softmax" else keras.losses.MeanSquaredError(),
        (inputs, one_hot[numbers]),
        (validation[0], one_hot[validation[1]]),
        training,
        seed,
        weights=(1 / share).astype(np.float32)[numbers],
        watch=watch,
    )
    return model, history


ALIKE = 0.05
"""Two types of a family count as alike when more than this share of each is taken for the other."""

STEP = 20 / 255
"""Step of an int8 network's input, whose range is that of the clip: types must differ under noise of this size."""

TOGETHER = {frozenset({"gafgyt.tcp", "gafgyt.udp"}): "gafgyt.tcp_udp"}
"""Names for types that are merged into one class; other merged types are named after their family."""


def alike(matrix: NDArray[np.integer], classes: Sequence[str]) -> dict[str, str]:
    """Return type -> merged name for types that rows do not tell apart, by their confusion (classes, classes).

    >>> alike(np.array([[90, 0, 0], [0, 60, 40], [0, 30, 70]]), ["benign", "gafgyt.tcp", "gafgyt.udp"])
    {'gafgyt.tcp': 'gafgyt.tcp_udp', 'gafgyt.udp': 'gafgyt.tcp_udp'}
    """
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    merged: dict[str, str] = {}
    for i, one in enumerate(classes):
        for j, other in enumerate(classes[:i]):
            kin = one.partition(".")[0]
            if "." in one and "." in other and kin == other.partition(".")[0] and min(share[i, j], share[j, i]) > ALIKE:
                name = TOGETHER.get(frozenset({one, other}), kin)
                name = kin if {merged.get(one, name), merged.get(other, name)} != {name} else name
                merged |= dict.fromkeys([k for k, v in merged.items() if v in (one, other)], name)
                merged[other] = merged[one] = name
    return dict(sorted(merged.items()))


def confusion(truth: NDArray[np.integer], guess: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Return the number of rows of class i taken for class j, shape (classes, classes).

    >>> confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    return np.bincount(truth * classes + guess, minlength=classes * classes).reshape(classes, classes)
