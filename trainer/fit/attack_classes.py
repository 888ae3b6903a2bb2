"""The classes of attacks in a table of rows: the network that distinguishes them, and the packet profile of each.

Nothing here has a say in what is detected; a class only names a detection. Importing this module imports TensorFlow.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.alert import CLASSES
from edge_agent.contract.bundle import BENIGN, PacketProfile
from edge_agent.contract.scaling import Array, Scaler
from edge_agent.detection import classify
from trainer.config import Config
from trainer.data.protocol import OPTIMISE, TEST, TRAIN
from trainer.data.row_table import RowTable
from trainer.fit import autoencoder, classifier
from trainer.fit.row_parts import FitError, Index, Parts, scored, shared


@dataclass(frozen=True, kw_only=True)
class AttackClasses:
    """A fitted classifier and everything measured on it; all empty when the rows hold fewer than two classes."""

    names: tuple[str, ...] = ()
    """Names of the classes, benign first."""
    network: Any = None
    profiles: dict[str, PacketProfile] = field(default_factory=dict)
    """Packet profiles of the classes that were learnt from packets."""
    metrics: dict[str, Any] | None = None
    history: dict[str, Any] | None = None


def learn(
    config: Config,
    table: RowTable,
    parts: Parts,
    scaler: Scaler,
    at: Index,
    say: Callable[[str], None],
    watch: autoencoder.Watch | None = None,
) -> AttackClasses:
    """Train the classifier on the columns ``at`` of a table, measure it and profile the packets of each class."""
    options = config.classifier
    if not options.enabled:
        say("classifier: switched off in the config")
        return AttackClasses()
    if len(np.unique(table.label)) < 2:
        say(f"classifier: skipped, there are only {', '.join(table.labels[c] for c in np.unique(table.label))} rows")
        return AttackClasses()
    class_of = [options.classes.get(label, label) for label in table.labels]
    for label, name in zip(table.labels, class_of, strict=True):
        if name not in CLASSES and name != BENIGN:
            raise FitError(
                f"label {label!r}: {name!r} is not a class that an alert can carry; known: {', '.join(CLASSES)}"
            )

    def inputs(values: Array) -> Array:
        return scaler.network_input(scaler.z(values))

    while True:
        names = (BENIGN, *sorted({c for c in class_of if c != BENIGN}))
        number = np.array([names.index(c) for c in class_of])[table.label]
        # neither the test part of benign rows nor that of attacks is ever validated on
        chosen = {p: _balanced(number, parts, p, names, options.rows_per_class) for p in (TRAIN, OPTIMISE)}
        for i, name in enumerate(names):
            if not (number[chosen[TRAIN]] == i).any():
                raise FitError(f"class {name!r} has no rows in the train part ({int((number == i).sum())} in all)")
        train, validation = (
            (inputs(table.values[np.ix_(chosen[p], at)]), number[chosen[p]]) for p in (TRAIN, OPTIMISE)
        )
        say(f"classifier: {len(names)} classes, {len(train[1]):,} train and {len(validation[1]):,} optimise rows")
        network, history = classifier.train(
            train, validation, len(names), options.training, config.seed, options, watch
        )
        noise = np.random.default_rng(config.seed).normal(0, classifier.STEP, validation[0].shape).astype(np.float32)
        guess = autoencoder.predictor(network)(validation[0] + noise).argmax(axis=1)
        merged = classifier.alike(classifier.confusion(validation[1], guess, len(names)), names)
        if not merged or not options.merge:
            break
        pairs = ", ".join(f"{label} as {name}" for label, name in merged.items())
        say(f"classes merged because the rows do not tell them apart: {pairs}")
        class_of = [merged.get(c, c) for c in class_of]

    test = np.flatnonzero(parts.part == TEST)
    predict = autoencoder.predictor(network)
    guess = np.argmax(scored(lambda values: predict(inputs(values)), table, test, at), axis=1)
    metrics = {
        "classes": list(names),
        "class_of": dict(zip(table.labels, class_of, strict=True)),
        "parameters": int(network.count_params()),
        "epochs": history["epochs"],
        "best_epoch": history["best_epoch"],
        "train_rows": {name: int((train[1] == i).sum()) for i, name in enumerate(names)},
        **_measure(classifier.confusion(number[test], guess, len(names)), names),
    }
    say(f"classifier: {network.count_params():,} parameters, best epoch {autoencoder.best_epoch(history)}")
    _say_recall(metrics, say)
    profiles = _profiles(table, parts, metrics["class_of"], names)
    return AttackClasses(names=names, network=network, profiles=profiles, metrics=metrics, history=history)


def _balanced(number: NDArray[np.integer], parts: Parts, part: int, names: Sequence[str], limit: int) -> Index:
    """Return row numbers of a part, at most ``limit`` of each class, evenly spread; see `row_parts.shared`."""
    chosen = []
    for i in range(len(names)):
        rows = np.flatnonzero((parts.part == part) & (number == i))
        chosen.append(rows[shared(parts.base[rows], limit, block=1)])
    return np.concatenate(chosen)


def _measure(matrix: NDArray[np.int64], names: Sequence[str]) -> dict[str, Any]:
    """Return the figures of test rows from their confusion matrix, rows of class i called class j."""
    return {
        "test_rows": {name: int(matrix[i].sum()) for i, name in enumerate(names)},
        "accuracy": _ratio(np.trace(matrix), matrix.sum()),
        "recall": {name: _ratio(matrix[i, i], matrix[i].sum()) for i, name in enumerate(names)},
        "confusion": matrix.tolist(),
    }


def _ratio(part: Any, whole: Any) -> float | None:
    return float(part) / float(whole) if whole else None


def _say_recall(metrics: dict[str, Any], say: Callable[[str], None]) -> None:
    rows = metrics["test_rows"]
    say(f"classifier: accuracy {metrics['accuracy']:.4f} on {sum(rows.values()):,} test rows; recall by class:")
    for name, share in metrics["recall"].items():
        say(f"  {name}: " + ("no test rows" if share is None else f"{share:.4f} of {rows[name]:,}"))


def _profiles(
    table: RowTable, parts: Parts, class_of: dict[str, str], names: Sequence[str]
) -> dict[str, PacketProfile]:
    """Return the packet profile of each class, from the packets of each attack capture.

    The rows of the test part are included, since an episode spans all parts. Classes learnt from rows without packets
    have no profile.
    """
    if table.profiles is None:
        return {}
    episodes = []
    for capture in np.unique(table.capture[parts.attack]):
        for label in np.unique(table.label[parts.attack][table.capture[parts.attack] == capture]):
            rows = parts.attack[(table.capture[parts.attack] == capture) & (table.label[parts.attack] == label)]
            rows = rows[np.argsort(table.t_ns[rows], kind="stable")]
            packets = table.profiles[rows].astype(np.float64)
            name = class_of.get(table.labels[label], table.labels[label])
            if np.isfinite(packets).all() and len(packets) >= classify.BLOCK and name in names:
                episodes.append((name, table.devices[table.device[rows[0]]], packets))
    return classify.learn(episodes) if episodes else {}
