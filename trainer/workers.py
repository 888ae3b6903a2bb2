"""Several machines that train one autoencoder: TensorFlow's collective all-reduce under Keras's own layers.

Every worker reads the same rows and draws the same batches; each takes its share of a batch, and Keras's optimisers
sum the gradients over all of them before each step, so that the weights stay equal everywhere. Keras 3's ``Model.fit``
does not run under this strategy ("unsupported type PerReplica"), our own step under ``strategy.run`` does. Importing
this module imports TensorFlow.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf


class WorkersError(Exception):
    """Workers that cannot train together; the message says why."""


@dataclass(frozen=True)
class Workers:
    """This process among its peers: worker ``number`` of ``count``."""

    number: int
    count: int
    strategy: Any

    def part(self, batch: Any) -> Any:
        """This worker's rows of a batch: every ``count``-th."""
        return batch[self.number :: self.count]

    def weight(self, rows: int, whole: int) -> float:
        """What the weights of ``rows`` rows are multiplied with: then the losses of all shares, however unlike in size,
        sum up to the mean over the ``whole`` batch. Keras divides each by the number of workers, made good here."""
        return self.count * rows / whole


def join(addresses: Sequence[str], number: int) -> Workers:
    """Become worker ``number`` of those at ``addresses`` (host:port); waits until all are there.

    To be called before anything else of TensorFlow runs in the process. WorkersError for addresses that cannot be.
    """
    if len(addresses) < 2 or len(set(addresses)) != len(addresses):
        raise WorkersError("--workers needs two addresses or more, all different")
    if not 0 <= number < len(addresses):
        raise WorkersError(f"--worker must be 0 to {len(addresses) - 1}, is {number}")
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise WorkersError(f"--workers: {address!r} is no host:port")
    os.environ["TF_CONFIG"] = json.dumps(
        {"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": number}}
    )
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)  # as alone: repeatable
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except (RuntimeError, tf.errors.OpError) as error:
        raise WorkersError(f"cannot join the other workers: {str(error).splitlines()[0]}") from error
    return Workers(number, len(addresses), strategy)
