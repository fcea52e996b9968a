"""Files that appear whole or not at all: the create-if-absent under every commit, on POSIX folders and on S3.

Of any number of writers exactly one makes a file, and no reader sees a part of it. Names are relative to the root, with
`/` between folders; dot-names are never listed.
"""

import errno
import os
import uuid
from urllib.parse import unquote

from fsspec.core import url_to_fs

from cluster.storage.object_store import ObjectFiles
from cluster.storage.posix import PosixFiles
from cluster.storage.protocol import NO_PROMISE, ONE_WRITER, S3_USER, TEMPORARY, Files, without_secrets
from numina.errors import OutputError


def open_files(root: str, *, single_writer: bool = False) -> Files:
    """The files under a local folder or a URL that fsspec knows.

    Raises OutputError for a filesystem that is neither POSIX nor S3, unless `single_writer`.
    """
    shown, (url, user) = without_secrets(root), _s3_user(root)
    try:
        fs, path = url_to_fs(url, use_listings_cache=False, **user)
    except (ImportError, ValueError) as error:
        trouble = str(error).replace(root, shown)
        raise OutputError(
            f"output {shown!r} can't be opened: {trouble}; install its fsspec package, e.g. s3fs"
        ) from None
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    if "file" in protocols:
        try:
            os.stat(path)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) or error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
                raise OutputError(f"output {shown!r} can't be opened: {error}; give another path") from None
        return PosixFiles(path, single_writer=single_writer)
    exclusive = "s3" in protocols
    if not exclusive and not single_writer:
        raise OutputError(f"output {shown!r} is on {sorted(protocols)}: {NO_PROMISE}; {ONE_WRITER}")
    return ObjectFiles(fs, path, exclusive=exclusive)


def check_promise(files: Files) -> None:
    """Try create-if-absent on the spot: some S3 servers ignore the condition, some mounts have no hard links.

    Raises OutputError when the second of two creates of one name is not refused.
    """
    probe = f"{TEMPORARY}probe-{uuid.uuid4().hex}"
    try:
        files.create(probe, b"first")
        refused = not files.create(probe, b"second") and files.read(probe) == b"first"
    finally:
        files.remove(probe)
    if not refused:
        raise OutputError(f"output {files.root!r} let two writers create one file: {NO_PROMISE}; {ONE_WRITER}")


def _s3_user(url: str) -> tuple[str, dict[str, str]]:
    """An S3 URL without its user's part, and that part as the client's options; other URLs as they are."""
    found = S3_USER.match(url)
    if found is None:
        return url, {}
    given = {"key": unquote(found["key"]), "secret": unquote(found["secret"] or "")}
    return without_secrets(url), {name: value for name, value in given.items() if value}
