"""Several machines that train one autoencoder: TensorFlow's collective all-reduce under Keras's own layers.

Every worker reads the same rows and draws the same batches; each takes its share of a batch, and Keras's optimisers
sum the gradients over all of them before each step, so that the weights stay equal everywhere. Keras 3's ``Model.fit``
does not run under this strategy ("unsupported type PerReplica"), our own step under ``strategy.run`` does. Importing
this module imports TensorFlow.
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

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

WAIT_S = 120.0
"""How long a worker waits for the others to start."""

GREETING = 4096
"""Longest greeting between workers, in bytes."""


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

    def mean(self, value: float) -> float:
        """Of all workers: what decides when to stop must be the same everywhere, though processors round unlike."""
        return float(self._sum(value)) / self.count

    def check_same(self, *things: object) -> None:
        """WorkersError when ``things`` (settings, digests of inputs) are not the same for all: each would take its
        share of another batch, and nothing else would notice."""
        digest = int.from_bytes(hashlib.sha256(repr(things).encode()).digest()[:5], "big")  # sums are exact in float64
        if self._sum(float(digest)) != float(digest * self.count):
            raise WorkersError("the workers were given different settings or rows; give all the same config and files")

    def _sum(self, value: float) -> float:
        def total(own: Any) -> Any:
            each = self.strategy.run(tf.identity, (own,))
            return self.strategy.reduce(tf.distribute.ReduceOp.SUM, each, axis=None)

        return float(tf.function(total, autograph=False)(tf.constant(value, tf.float64)))

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Around all work with the others: one that is gone is a WorkersError, not TensorFlow's."""
        try:
            yield
        except tf.errors.OpError as error:
            raise WorkersError(f"another worker is gone: {str(error.message).partition(chr(10))[0][:200]}") from error


def join(addresses: Sequence[str], number: int, wait_s: float = WAIT_S) -> Workers:
    """Become worker ``number`` of those at ``addresses`` (host:port); waits until all are there, at most ``wait_s``.

    To be called before anything else of TensorFlow runs in the process. WorkersError for addresses that cannot be, or
    others that do not come. Connections are neither encrypted nor authenticated, as TensorFlow makes them.
    """
    if len(addresses) < 2 or len(set(addresses)) != len(addresses):
        raise WorkersError("--workers needs two addresses or more, all different")
    if not 0 <= number < len(addresses):
        raise WorkersError(f"--worker must be 0 to {len(addresses) - 1}, is {number}")
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise WorkersError(f"--workers: {address!r} is no host:port")
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
    """Return when every worker is there; WorkersError when one is not within ``wait_s`` or has other addresses.

    Before TensorFlow has a say: it waits for absent peers without a bound, and deaf to signals.
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
    """The first worker: hear every other's greeting, then tell them all to go."""
    here: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        while missing := set(range(1, len(addresses))) - set(here):
            left = deadline - time.monotonic()
            if left <= 0:
                raise WorkersError(f"no worker came from {', '.join(addresses[i] for i in sorted(missing))} in time")
            server.settimeout(left)
            try:
                connection = stack.enter_context(server.accept()[0])
                connection.settimeout(min(5.0, left))
                number, theirs = json.loads(_line(connection))
            except (OSError, ValueError, TypeError):  # nobody yet, or no worker
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
    """Every other worker: tell the first who this is, until it answers."""
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
            raise WorkersError("--workers and --worker: the first worker was given other addresses, or has this one")
        time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))
    raise WorkersError(f"no answer from the first worker, {addresses[0]}, in time")


def _line(connection: socket.socket) -> bytes:
    """What comes up to the end of the line or of the connection, at most `GREETING` bytes."""
    got = b""
    while not got.endswith(b"\n") and len(got) < GREETING and (more := connection.recv(GREETING)):
        got += more
    return got.strip()


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
