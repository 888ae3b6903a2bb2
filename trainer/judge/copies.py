"""Work done by a copy of this process (fork), whose changes are lost when it is done.

An agent that has judged a device's days cannot be copied by other means, since its kernel keeps its tables. A copy
changes nothing in the agent that it was taken from, so that any number of attacks can begin from the very same moment.
"""

import os
import pickle
import traceback
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class CopyError(Exception):
    """Work that broke; the message has the traceback of the copied process."""


def in_copy(work: Callable[[], T]) -> T:
    """Return what ``work`` returns in a copy of this process; CopyError when it fails there."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        status, result = 1, b""
        try:
            os.close(reader)
            result = pickle.dumps((True, work()))
            status = 0
        except BaseException:  # noqa: BLE001 - the copy must end here, whatever happens in it
            result = pickle.dumps((False, traceback.format_exc()))
        finally:
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(result)
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        content = pipe.read()
    os.waitpid(child, 0)
    if not content:
        raise CopyError("the copied process was ended from outside")
    right, value = pickle.loads(content)  # from a copy of this very process
    if not right:
        raise CopyError(str(value))
    result_of: T = value
    return result_of
