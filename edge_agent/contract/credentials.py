"""Secrets that the configuration names as ``credential:NAME`` instead of by a path: the form, and where they are.

systemd hands the files of `FOLDER`, which only root may read, to a service as its credentials (``LoadCredential=``, see
systemd.exec(5)): copies that only the service's user may read, in a folder that it names in the environment. A command
that root types has no such copies and reads the folder itself.
"""

import os
import re
from pathlib import Path

PREFIX = "credential:"
FOLDER = Path("/etc/botwatch/credentials")

ID = "botwatch"
"""The unit loads the whole folder under this id; systemd then names each credential ``ID_NAME``."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class CredentialError(ValueError):
    """A reference to a credential that cannot be one, or a credential that does not exist."""


def name_of(reference: Path) -> str | None:
    """Return NAME if a value is ``credential:NAME``, None if it is a path; CredentialError if NAME cannot be one.

    >>> name_of(Path("credential:mqtt.password"))
    'mqtt.password'
    >>> name_of(Path("/etc/botwatch/ca.crt"))
    """
    text = str(reference)
    if not text.startswith(PREFIX):
        return None
    name = text.removeprefix(PREFIX)
    if not _NAME.fullmatch(name):
        raise CredentialError(
            f"{text[:80]!r}: {PREFIX} is followed by the name of a file in {FOLDER} (letters, digits, '.', '_', '-')"
        )
    return name


def locate(reference: Path) -> Path:
    """Return the file that a value means: itself, or the credential that it names.

    Credentials of the running service come first, then those in `FOLDER`: the environment may be that of another
    service, from which this command was started. CredentialError if neither place has the credential.
    """
    name = name_of(reference)
    if name is None:
        return reference
    of_service = os.environ.get("CREDENTIALS_DIRECTORY")
    copies = [Path(of_service, f"{ID}_{name}"), Path(of_service, name)] if of_service else []
    for path in (*copies, FOLDER / name):
        if os.path.lexists(path):
            return path
    if of_service:
        raise CredentialError(f"{reference}: {FOLDER} had no file {name} when the service was started")
    if FOLDER.is_dir() and not os.access(FOLDER, os.X_OK):
        raise CredentialError(f"{reference}: {FOLDER} can be read by root only: run this command as root")
    raise CredentialError(f"{reference}: there is no file {name} in {FOLDER}")
