"""The autoencoder: its layers, its training, and calling it. Scaling and τ are not known here.

Its default shape (`Network`) is that of Meidan et al. 2018: hidden layers of ceil(.75 .5 .25 .5 .75 · n), tanh, linear
output, mean squared error. Importing this module imports TensorFlow.
"""

import contextlib
import importlib.util
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_agent.contract.scaling import Array
from edge_agent.progress import Progress
from trainer.config import Network, Training
from trainer.fit.libraries import keras, tf

if TYPE_CHECKING:
    from trainer.fit.workers import Workers

OPTIMISERS = {
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "nadam": keras.optimizers.Nadam,
    "rmsprop": keras.optimizers.RMSprop,
    "adagrad": keras.optimizers.Adagrad,
    "sgd": keras.optimizers.SGD,
}
"""`Training.optimiser` -> Keras's class, with Keras's defaults: no momentum, no decay."""

PREDICT_BATCH = 8192
TENSORFLOW: str = tf.__version__


Watch = Callable[[Any, int, float, float], None]
"""Called after every epoch with the network at that time, the epoch's number, its loss and its validation loss."""


Batches = Callable[[np.random.Generator], Iterator[tuple[Array, Array, Array]]]
"""Yields one epoch as batches of inputs, targets and weights, in an order drawn from the generator."""


class TrainingError(Exception):
    """A training that cannot give a model; the message says why."""


def hidden(columns: int, network: Network | None = None) -> tuple[int, ...]:
    """Return the widths of the hidden layers.

    >>> hidden(115), hidden(10, Network((0.75, 0.33), rounding="floor"))
    ((87, 58, 29, 58, 87), (7, 3))
    """
    network = network or Network()
    whole = math.ceil if network.rounding == "ceil" else math.floor
    return tuple(max(1, whole(share * columns)) for share in network.hidden)


def build(columns: int, network: Network | None = None) -> Any:
    """Return an untrained network (n, columns) -> (n, columns); 33,900 parameters at 115 columns."""
    network = network or Network()
    layers = [keras.layers.Input((columns,), name="z")]
    layers += [
        keras.layers.Dense(width, activation=network.activation, name=f"hidden{i}")
        for i, width in enumerate(hidden(columns, network), 1)
    ]
    layers.append(keras.layers.Dense(columns, name="rebuilt"))
    if network.head == "clipped":
        layers.append(clipped())
    return keras.Sequential(layers, name="autoencoder")


def clipped() -> Any:
    """Return a layer min(1, max(0, x)), which has no gradient where x is outside (0, 1)."""
    return keras.layers.ReLU(max_value=1.0, name="clipped")


def train(
    inputs: Array | Batches,
    validation: Array,
    training: Training,
    seed: int,
    network: Network | None = None,
    watch: Watch | None = None,
    workers: "Workers | None" = None,
    weights: Array | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Fit on clipped z of benign train rows; return the network with its best weights, and its history.

    ``weights`` (n,) are those of the rows, all 1 by default; `Batches` bring their own.

    The target is the clipped input itself, although rows are scored against the unclipped z. The network never sees
    values beyond the clip, so an unclipped target would only let a few extreme rows move the weights for all others.
    """
    start(seed)
    with workers.strategy.scope() if workers else contextlib.nullcontext():
        model = build(validation.shape[1], network)
    rows = inputs if callable(inputs) else (inputs, inputs)
    check = validation, validation
    history = run_epochs(model, squares(), rows, check, training, seed, weights=weights, watch=watch, workers=workers)
    if workers:  # a copy outside of the strategy, whose variables exist only while all workers do
        alone = build(validation.shape[1], network)
        alone.set_weights(model.get_weights())
        model = alone
    return model, history


def run_epochs(
    model: Any,
    loss: Any,
    rows: tuple[Array, Array] | Batches,
    validation: tuple[Array, Array],
    training: Training,
    seed: int,
    weights: Array | None = None,
    watch: Watch | None = None,
    workers: "Workers | None" = None,
) -> dict[str, Any]:
    """Train in mini-batches until ``validation`` stops improving, restore the best weights, return the history.

    ``rows`` are (inputs, targets), weighted by ``weights``, or `Batches` for rows that do not fit into memory; these
    bring their own weights. The history names the epoch of the best weights. This is not ``Model.fit``: without
    tf.data between the rows and the step, training is a quarter faster at full size and ten times faster on small
    sets, and it is repeatable from one NumPy generator.
    """
    shuffle = np.random.default_rng(seed)
    batches = rows if callable(rows) else _shuffled(*rows, weights, training.batch)
    (step, _), predict = stepper(model, loss, training, workers), predictor(model)
    losses: list[float] = []
    checks: list[float] = []
    best, best_epoch, best_weights = math.inf, 0, model.get_weights()
    with Progress(model.name, training.epochs) as progress:
        for epoch in range(1, training.epochs + 1):
            seen, total = 0, 0.0
            for x, y, weight in batches(shuffle):
                whole = len(x)
                if workers:
                    x, y, weight = workers.part(x), workers.part(y), workers.part(weight)
                    weight = weight * np.float32(workers.weight(len(x), whole))
                total += float(step(x, y, weight)) * whole
                seen += whole
            losses.append(total / seen)
            check = float(loss(validation[1], predict(validation[0])))
            checks.append(workers.mean(check) if workers else check)
            if not math.isfinite(losses[-1]) or not math.isfinite(checks[-1]):
                raise TrainingError(f"{model.name}: the loss stopped being a number; a lower learning_rate may help")
            if watch is not None:
                watch(model, epoch, losses[-1], checks[-1])
            if checks[-1] < best - training.min_delta or epoch == 1:
                best, best_epoch, best_weights = checks[-1], epoch, model.get_weights()
            progress.step(note=f"epochs, loss {losses[-1]:.4g}, validation {checks[-1]:.4g}, best at {best_epoch}")
            if epoch - best_epoch >= training.patience:
                break
    model.set_weights(best_weights)
    return {"epochs": len(losses), "best_epoch": best_epoch, "loss": losses, "validation_loss": checks}


def best_epoch(history: dict[str, Any]) -> str:
    """Return the best epoch of a history as text, with its losses."""
    best = history["best_epoch"]
    loss, check = history["loss"][best - 1], history["validation_loss"][best - 1]
    return f"{best} of {history['epochs']} (loss {loss:.4g}, validation {check:.4g})"


def _shuffled(inputs: Array, targets: Array, weights: Array | None, size: int) -> Batches:
    weights = np.ones(len(inputs), dtype=np.float32) if weights is None else weights

    def batches(shuffle: np.random.Generator) -> Iterator[tuple[Array, Array, Array]]:
        order = shuffle.permutation(len(inputs))
        for i in range(0, len(order), size):
            batch = order[i : i + size]
            yield inputs[batch], targets[batch], weights[batch]

    return batches


def squares() -> Any:
    """Return the autoencoder's loss: mean squared error."""
    return keras.losses.MeanSquaredError()


def stepper(
    model: Any, loss: Any, training: Training, workers: "Workers | None" = None
) -> tuple[Callable[[Array, Array, Array], Any], Any]:
    """Return a function for one step, and the optimiser.

    The function takes a batch of inputs (n, k), targets (n, m) and weights (n,), and returns the batch's loss. With
    ``workers`` the batch is this worker's share; loss and gradients are summed over all of them.
    """
    with workers.strategy.scope() if workers else contextlib.nullcontext():
        optimizer = OPTIMISERS[training.optimiser](training.learning_rate)
        optimizer.build(model.trainable_variables)
    widths = [(model.input_shape[-1],), (model.output_shape[-1],), ()]

    def learn(x: Any, y: Any, weight: Any) -> Any:
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True), sample_weight=weight)
        optimizer.apply_gradients(
            zip(tape.gradient(value, model.trainable_variables), model.trainable_variables, strict=True)
        )
        return value

    @tf.function(  # type: ignore[untyped-decorator]
        input_signature=[tf.TensorSpec((None, *width), tf.float32) for width in widths], autograph=False
    )
    def step(x: Any, y: Any, weight: Any) -> Any:
        if workers is None:
            return learn(x, y, weight)
        share = workers.strategy.run(learn, (x, y, weight))
        return workers.strategy.reduce(tf.distribute.ReduceOp.SUM, share, axis=None)

    return step, optimizer


def all_of(watches: Sequence[Watch]) -> Watch:
    """Return one watch that calls each of ``watches``."""

    def watch(model: Any, epoch: int, loss: float, validation: float) -> None:
        for each in watches:
            each(model, epoch, loss, validation)

    return watch


def tensorboard(folder: Path) -> Watch:
    """Return a watch that writes loss and validation loss of each network for TensorBoard.

    TensorFlow's summaries need the package `tensorboard`, which botwatch does not need otherwise; TrainingError if it
    is not installed.
    """
    writers: dict[str, Any] = {}

    def watch(model: Any, epoch: int, loss: float, validation: float) -> None:
        if model.name not in writers:
            writers[model.name] = tf.summary.create_file_writer(str(folder / model.name))
        with writers[model.name].as_default(step=epoch):
            tf.summary.scalar("loss", loss)
            tf.summary.scalar("validation loss", validation)
        writers[model.name].flush()

    if importlib.util.find_spec("tensorboard") is None:
        raise TrainingError("--tensorboard: the package tensorboard is not installed; pip install tensorboard")
    return watch


def checkpoints(folder: Path) -> Watch:
    """Return a watch that saves the network of the lowest validation loss so far as ``folder``/NAME.keras."""
    lowest: dict[str, float] = {}

    def watch(model: Any, epoch: int, loss: float, validation: float) -> None:
        if validation < lowest.get(model.name, math.inf):
            lowest[model.name] = validation
            folder.mkdir(parents=True, exist_ok=True)
            save(model, folder / f"{model.name}.keras")

    return watch


def save(model: Any, path: Path) -> None:
    """Write a network; the file appears whole or not at all."""
    temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")  # Keras chooses the format by the suffix
    model.save(temporary)
    os.replace(temporary, path)


def load(path: Path) -> Any:
    """Return a saved network; OSError or ValueError if the file does not hold one."""
    return keras.models.load_model(path)


def predictor(model: Any) -> Callable[[Array], Array]:
    """Return ``model`` as a plain function on float32 rows, called in batches of bounded memory."""
    shape = tf.TensorSpec((None, model.input_shape[-1]), tf.float32)
    call = tf.function(model, input_signature=[shape], autograph=False)

    def predict(rows: Array) -> Array:
        out = np.empty((len(rows), model.output_shape[-1]), dtype=np.float32)
        for i in range(0, len(rows), PREDICT_BATCH):
            out[i : i + PREDICT_BATCH] = call(rows[i : i + PREDICT_BATCH]).numpy()
        return out

    return predict


def start(seed: int) -> None:
    """Draw weights from ``seed`` from now on and make all operations repeatable.

    TensorFlow is held to one thread, because a sum depends on the number of threads that share it.
    """
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    tf.get_logger().setLevel("ERROR")  # hides notices of retracing: every network is a function of its own
    with contextlib.suppress(RuntimeError):  # TensorFlow already runs in this process: its threads stay as they are
        tf.config.threading.set_intra_op_parallelism_threads(1)
