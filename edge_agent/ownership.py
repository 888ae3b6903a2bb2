"""Files that root makes in a folder of another user, as by a command typed on the folder of a service.

The service could not use them, and its folder is made its own again only when the folder itself is not.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path


def make_file(path: Path) -> None:
    """As root, make an empty file of the folder's owner if there is none; if that fails, to open it says why."""
    if os.geteuid() != 0:
        return
    with suppress(OSError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        hand_over(path)


def hand_over(path: Path) -> None:
    """Give a file or folder that root has just made to the owner of the folder it is in, if that is possible."""
    if os.geteuid() != 0:
        return
    with suppress(OSError):
        owner = path.absolute().parent.stat()
        made = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(made)
            one_name = stat.S_ISDIR(status.st_mode) or status.st_nlink == 1  # not another's file under a second name
            if status.st_uid == 0 and owner.st_uid != 0 and one_name:
                os.fchown(made, owner.st_uid, owner.st_gid)
        finally:
            os.close(made)
