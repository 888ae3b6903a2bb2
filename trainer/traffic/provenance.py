"""The version of the generator: figures on generated traffic hold for one version of it."""

import hashlib
from pathlib import Path

GENERATOR = "trainer/traffic"


def generator_sha256() -> str:
    """Return the SHA-256 of all modules of the generator, by name."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()
