"""The generator's hash: that of every module of its package."""

import hashlib
from pathlib import Path

from trainer.traffic import provenance


def test_the_hash_covers_every_module_by_name():
    digest = hashlib.sha256()
    modules = sorted(Path(provenance.__file__).parent.rglob("*.py"))
    assert {"plan.py", "wire.py", "kinds.py", "mirai.py"} <= {path.name for path in modules}
    for path in modules:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    assert provenance.generator_sha256() == digest.hexdigest()
