"""The autoencoder: its layers, how it is trained, how it is called. Scaling and τ are not its knowledge.

Meidan et al. 2018 shape it: hidden layers of ceil(.75 .5 .25 .5 .75 · n), tanh, linear output, mean squared error.
Importing this module imports TensorFlow.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.scaling import Array
from trainer.config import Training
from trainer.progress import Progress

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # notices and warnings of TensorFlow's C++; its errors still show

import keras
import tensorflow as tf

WIDTHS = (0.75, 0.5, 0.25, 0.5, 0.75)
PREDICT_BATCH = 8192


class TrainingError(Exception):
    """A training that cannot give a model; the message says why."""


def hidden(columns: int) -> tuple[int, ...]:
    """Widths of the hidden layers.

    >>> hidden(115)
    (87, 58, 29, 58, 87)
    """
    return tuple(math.ceil(share * columns) for share in WIDTHS)


def build(columns: int) -> Any:
    """An untrained network (n, columns) -> (n, columns); 33,900 parameters at 115 columns."""
    layers = [keras.layers.Input((columns,), name="z")]
    layers += [keras.layers.Dense(w, activation="tanh", name=f"hidden{i}") for i, w in enumerate(hidden(columns), 1)]
    return keras.Sequential([*layers, keras.layers.Dense(columns, name="rebuilt")], name="autoencoder")


def train(inputs: Array, validation: Array, training: Training) -> tuple[Any, dict[str, Any]]:
    """Fit on clipped z of benign train rows; returns the network with its best weights, and its history.

    The target is the clipped input itself, although rows are scored against the unclipped z: the network never sees
    what lies beyond the clip, so an unclipped target would only let a few wild rows pull the weights of all others.
    """
    model = build(inputs.shape[1])
    model.compile(optimizer=keras.optimizers.Adam(training.learning_rate), loss="mse")
    return model, run_epochs(model, "autoencoder", (inputs, inputs), (validation, validation), training)


def run_epochs(
    model: Any,
    name: str,
    rows: tuple[NDArray[Any], NDArray[Any]],
    validation: tuple[NDArray[Any], NDArray[Any]],
    training: Training,
    class_weight: dict[int, float] | None = None,
) -> dict[str, Any]:
    """Fit a compiled model with early stopping on ``validation``; the history names the epoch whose weights it has."""
    stop = keras.callbacks.EarlyStopping(
        monitor="val_loss", patience=training.patience, min_delta=training.min_delta, restore_best_weights=True
    )
    with Progress(name, training.epochs) as progress:

        def after_epoch(epoch: int, logs: dict[str, float]) -> None:
            progress.step(note=f"epochs, loss {logs['loss']:.4g}, validation {logs['val_loss']:.4g}")

        fitted = model.fit(
            *rows,
            validation_data=validation,
            epochs=training.epochs,
            batch_size=training.batch,
            validation_batch_size=PREDICT_BATCH,
            class_weight=class_weight,
            callbacks=[
                stop,
                keras.callbacks.TerminateOnNaN(),
                keras.callbacks.LambdaCallback(on_epoch_end=after_epoch),
            ],
            verbose=0,
        )
    history = {key: [float(v) for v in values] for key, values in fitted.history.items()}
    if not np.isfinite(history["loss"] + history["val_loss"]).all():
        raise TrainingError(f"{name}: the loss stopped being a number; a lower learning_rate may help")
    return {"epochs": len(history["loss"]), "best_epoch": int(stop.best_epoch) + 1, **history}


def predictor(model: Any) -> Callable[[Array], Array]:
    """``model`` as a plain function on float32 rows, in batches of bounded memory."""

    def predict(rows: Array) -> Array:
        return np.asarray(model.predict(rows, batch_size=PREDICT_BATCH, verbose=0), dtype=np.float32)

    return predict


def seed(value: int) -> None:
    """Start every random generator at ``value`` and make TensorFlow's operations repeatable."""
    keras.utils.set_random_seed(value)
    tf.config.experimental.enable_op_determinism()
