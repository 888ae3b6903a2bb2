"""One autoencoder trained by several machines, by TensorFlow's collective all-reduce under Keras's layers.

Every worker reads the same rows and draws the same batches. Each takes its share of a batch, and Keras's optimisers
sum the gradients over all workers before each step, so that the weights stay equal everywhere. Keras 3's ``Model.fit``
does not run under this strategy ("unsupported type PerReplica"); the step of `autoencoder.stepper` does. Importing this
module imports TensorFlow.
"""

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.fit.libraries import tf

WAIT_S = 120.0
"""Longest time that a worker waits for the others to start."""

GREETING = 4096
"""Longest greeting between workers, in bytes."""


class WorkersError(Exception):
    """Workers that cannot train together; the message says why."""


@dataclass(frozen=True)
class Workers:
    """This process among all workers: worker ``number`` of ``count``."""

    number: int
    count: int
    strategy: Any

    def part(self, batch: Any) -> Any:
        """Return this worker's rows of a batch: every ``count``-th."""
        return batch[self.number :: self.count]

    def weight(self, rows: int, whole: int) -> float:
        """Return the factor for the weights of this worker's ``rows`` rows of a batch of ``whole``.

        With it the losses of all shares, whatever their sizes, sum up to the mean over the batch. It also undoes
        Keras's division of each share by the number of workers.
        """
        return self.count * rows / whole

    def mean(self, value: float) -> float:
        """Return the mean of ``value`` over all workers.

        Processors round differently, and the figure that ends a training must be the same everywhere.
        """
        return float(self._sum(value)) / self.count

    def check_same(self, *things: object) -> None:
        """Raise WorkersError if ``things`` (settings, digests of inputs) are not the same for all workers.

        Otherwise each would take its share of another batch, and nothing else would notice.
        """
        digest = int.from_bytes(hashlib.sha256(repr(things).encode()).digest()[:5], "big")  # sums are exact in float64
        if self._sum(float(digest)) != float(digest * self.count):
            raise WorkersError("the workers were given different settings or rows; give all the same config and files")

    def _sum(self, value: float) -> float:
        def total(share: Any) -> Any:
            shares = self.strategy.run(tf.identity, (share,))
            return self.strategy.reduce(tf.distribute.ReduceOp.SUM, shares, axis=None)

        return float(tf.function(total, autograph=False)(tf.constant(value, tf.float64)))

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Enclose all work with the others: the loss of a worker raises WorkersError instead of TensorFlow's error."""
        try:
            yield
        except tf.errors.OpError as error:
            raise WorkersError(
                f"another worker has stopped: {str(error.message).partition(chr(10))[0][:200]}"
            ) from error


def join(addresses: Sequence[str], number: int, wait_s: float = WAIT_S) -> Workers:
    """Become worker ``number`` of those at ``addresses`` (host:port); wait at most ``wait_s`` until all are there.

    This must be called before anything else of TensorFlow runs in the process. WorkersError for invalid addresses, and
    if another worker does not appear. TensorFlow's connections are neither encrypted nor authenticated.
    """
    if len(addresses) < 2 or len(set(addresses)) != len(addresses):
        raise WorkersError("--workers needs two addresses or more, all different")
    if not 0 <= number < len(addresses):
        raise WorkersError(f"--worker must be 0 to {len(addresses) - 1}, is {number}")
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise WorkersError(f"--workers: {address!r} is not host:port")
    meet(addresses, number, wait_s)
    os.environ["TF_CONFIG"] = json.dumps(
        {"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": number}}
    )
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)  # as alone: repeatable
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except (RuntimeError, tf.errors.OpError) as error:
        raise WorkersError(f"cannot join the other workers: {str(error).splitlines()[0]}") from error
    return Workers(number, len(addresses), strategy)


def meet(addresses: Sequence[str], number: int, wait_s: float) -> None:
    """Return when every worker is there; WorkersError if one is missing after ``wait_s`` or has other addresses.

    This comes before TensorFlow's own connections, because TensorFlow waits for absent peers without a bound and
    ignores signals meanwhile.
    """
    deadline = time.monotonic() + wait_s
    try:
        with socket.create_server(_split(addresses[number]), backlog=len(addresses)) as server:
            if number == 0:
                _gather(addresses, server, deadline)
    except OSError as error:
        raise WorkersError(f"--workers: cannot listen on {addresses[number]}: {error.strerror or error}") from error
    if number:
        _greet(addresses, number, deadline)


def _gather(addresses: Sequence[str], server: socket.socket, deadline: float) -> None:
    """Receive the greeting of every other worker, then release them all; the first worker does this."""
    here: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        while missing := set(range(1, len(addresses))) - set(here):
            left = deadline - time.monotonic()
            if left <= 0:
                missing_addresses = ", ".join(addresses[i] for i in sorted(missing))
                raise WorkersError(f"no worker connected from {missing_addresses} in time")
            server.settimeout(left)
            try:
                connection = stack.enter_context(server.accept()[0])
                connection.settimeout(min(5.0, left))
                number, theirs = json.loads(_line(connection))
            except (OSError, ValueError, TypeError):  # nobody connected yet, or a stranger did
                continue
            if theirs == list(addresses) and number in missing:
                here[number] = connection
            else:
                with contextlib.suppress(OSError):
                    connection.sendall(b"differs\n")
        for connection in here.values():
            with contextlib.suppress(OSError):
                connection.sendall(b"go\n")


def _greet(addresses: Sequence[str], number: int, deadline: float) -> None:
    """Send the first worker this worker's number and addresses until it answers; every other worker does this."""
    while (left := deadline - time.monotonic()) > 0:
        answer = b""
        with (
            contextlib.suppress(OSError),
            socket.create_connection(_split(addresses[0]), timeout=min(5.0, left)) as connection,
        ):
            connection.sendall(json.dumps([number, list(addresses)]).encode() + b"\n")
            connection.settimeout(left)
            answer = _line(connection)
        if answer == b"go":
            return
        if answer == b"differs":
            raise WorkersError(
                "--workers and --worker: the first worker was given other addresses, or this number is taken"
            )
        time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))
    raise WorkersError(f"no answer from the first worker, {addresses[0]}, in time")


def _line(connection: socket.socket) -> bytes:
    """Receive up to the end of the line or of the connection, at most about `GREETING` bytes."""
    line = b""
    while not line.endswith(b"\n") and len(line) < GREETING and (more := connection.recv(GREETING)):
        line += more
    return line.strip()


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
