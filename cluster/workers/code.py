"""Which code a process runs: a digest of the three packages' source files, and where they lie."""

import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the packages
PACKAGES = ("cluster", "numina", "pipelines")


@cache
def code_digest() -> str:
    """16 hex digits of the names and contents of all .py files of the three packages; read once per process."""
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        name, content = file.relative_to(ROOT).as_posix().encode(), file.read_bytes()
        digest.update(b"%d:%s%d:" % (len(name), name, len(content)))  # lengths, so that no file can pass for two
        digest.update(content)
    return digest.hexdigest()
