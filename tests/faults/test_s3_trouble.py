"""An S3 server that is busy, slow, or takes the client's credentials no more: a real one behind a proxy."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import s3fs

from cluster.dataset.garbage import collect_garbage
from cluster.dataset.store import Store
from numina.errors import StorageError
from tests.cluster.dataset.outputs import a_row, key_of
from tests.faults.s3_server import CUT, USER, Proxy, Server


@pytest.fixture
def proxy(server: Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Proxy]:
    """With an empty bucket named as the test."""
    proxy = Proxy(server.endpoint)
    for name, value in {**USER, "AWS_ENDPOINT_URL": proxy.endpoint}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir(bucket_of(request))
    proxy.taken()
    yield proxy
    s3fs.S3FileSystem.clear_instance_cache()
    proxy.stop()


@pytest.fixture
def root(proxy: Proxy, request: pytest.FixtureRequest) -> str:
    return f"s3://{bucket_of(request)}/out"


def bucket_of(request: pytest.FixtureRequest) -> str:
    return hashlib.sha256(request.node.name.encode()).hexdigest()[:16]


def fill(store: Store, clips: int) -> None:
    for number in range(clips):
        layout_file = store.put_layout(key_of(number), {"labels": np.arange(number)})
        store.commit(a_row(key_of(number), store, layout_file=layout_file))
        store.put_evaluation("exact", key_of(number), {"count_accuracy": 1.0})


def whole(store: Store, clips: int) -> bool:
    """Whether all rows, verdicts and layouts are there once."""
    rows, keys = store.rows(), sorted(map(key_of, range(clips)))
    assert [key.hex() for key in sorted(store.committed_index().keys)] == keys
    assert store.evaluations("exact")["key"].to_pylist() == keys
    return rows["key"].to_pylist() == keys and all(map(store.read, rows["layout_file"].to_pylist()))


def test_a_busy_and_a_slow_server_are_asked_again(proxy: Proxy, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every seventh request is answered with 503 SlowDown, and some aren't answered before the client's time is over:
    nothing fails, nothing is lost, and a commit whose answer was lost is there once."""
    monkeypatch.setattr(s3fs.S3FileSystem, "read_timeout", 0.5)
    s3fs.S3FileSystem.clear_instance_cache()
    asked, refused = 0, dict[str, int]()

    def trouble(kind: str, headers: Mapping[str, str]) -> tuple[int, str] | float | None:
        nonlocal asked
        asked += 1
        if asked % 50 == 7:
            refused["slow"] = refused.get("slow", 0) + 1
            return 0.8
        if asked % 7 == 0:
            refused[kind] = refused.get(kind, 0) + 1
            return 503, "SlowDown"
        return None

    proxy.trouble = trouble
    store = Store(root)
    store.open_run({})
    fill(store, 2)
    collect_garbage(store)
    assert whole(Store(root), 2)
    assert refused["slow"] >= 1
    assert {"PUT", "GET", "LIST"} <= refused.keys()


def test_a_server_that_stays_busy_is_lost_storage(proxy: Proxy, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job stops with the server's own word, and resumes when it answers again."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 2)
    s3fs.S3FileSystem.clear_instance_cache()
    store = Store(root)
    store.open_run({})
    fill(store, 2)
    proxy.trouble = lambda kind, headers: (503, "SlowDown")
    with pytest.raises(StorageError, match=r"SlowDown(.|\n)*the same command to resume"):
        store.committed_index()
    proxy.trouble = lambda kind, headers: None
    assert whole(store, 2)


@pytest.mark.parametrize("answer", [(500, "InternalError"), (503, "ServiceUnavailable"), (400, "RequestTimeout"), CUT])
def test_passing_errors_are_asked_again(answer: tuple[int, str] | str, proxy: Proxy, root: str) -> None:
    """An error of the server's own, a connection that is reset amid an answer: nothing fails, and all is there once."""
    asked, refused = 0, set[str]()

    def trouble(kind: str, headers: Mapping[str, str]) -> tuple[int, str] | str | None:
        nonlocal asked
        asked += 1
        if asked % 5:
            return None
        refused.add(kind)
        return answer

    proxy.trouble = trouble
    store = Store(root)
    store.open_run({})
    fill(store, 3)
    collect_garbage(store)
    assert whole(Store(root), 3)
    assert {"PUT", "GET", "LIST"} <= refused


def test_a_clock_that_is_wrong_is_named(proxy: Proxy, root: str) -> None:
    """S3 takes no request of a machine whose clock is off by more than 15 minutes: the error says what to do."""
    store = Store(root)
    store.open_run({})
    proxy.trouble = lambda kind, headers: (403, "RequestTimeTooSkewed")
    with pytest.raises(StorageError, match=r"clock(.|\n)*run the same command to resume"):
        fill(store, 1)
    proxy.trouble = lambda kind, headers: None
    fill(store, 1)
    assert whole(store, 1)


class Guard:
    """Lets only requests with a token pass; others get the error `ExpiredToken`."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.refused = 0

    def __call__(self, kind: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
        if headers.get("x-amz-security-token") == self.token:
            return None
        self.refused += 1
        return 400, "ExpiredToken"


@pytest.mark.parametrize("by", ["file", "process"])
def test_credentials_that_expire_are_read_anew(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, by: str
) -> None:
    """From the profile's file, which somebody renews, or from a credential process: reads, writes, listings and looks
    go on, by many threads at once. Where nobody renewed them the error says so, and the same command goes on later."""
    s3fs.S3FileSystem().mkdir(f"expiring-{by}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    profile, config, process = tmp_path / "credentials", tmp_path / "config", tmp_path / "process.json"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    if by == "process":
        config.write_text(f"[default]\ncredential_process = /bin/cat {process}\n")

    def renew(token: str) -> None:
        if by == "file":
            user = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "aws_session_token": token}
            profile.write_text("[default]\n" + "".join(f"{name}={value}\n" for name, value in user.items()))
        else:
            user = {"Version": 1, "AccessKeyId": "a", "SecretAccessKey": "b", "SessionToken": token}
            until = datetime.now(UTC) + timedelta(hours=1)
            process.write_text(json.dumps(user | {"Expiration": until.isoformat()}))

    s3fs.S3FileSystem.clear_instance_cache()
    renew("first")
    guard = Guard("first")
    proxy.trouble = guard
    store = Store(f"s3://expiring-{by}/out")
    store.open_run({})
    fill(store, 2)
    for number, action in enumerate(
        (
            lambda: store.committed_index(),
            lambda: store.is_committed(key_of(1)),  # a HEAD request: its refusal has no reason
            lambda: store.commit(a_row(key_of(2), store)),
            lambda: store.lease([key_of(3)]),
            lambda: store.others(),
        )
    ):
        guard.token = f"token {number}"
        renew(guard.token)
        action()
    assert guard.refused >= 5
    guard.token = "last"
    refused = guard.refused
    with pytest.raises(StorageError, match=r"credentials have expired(.|\n)*run the same command to resume"):
        store.rows()
    assert guard.refused - refused <= 64  # no storm of threads that renew
    renew("last")
    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(store.is_committed, [key_of(number % 3) for number in range(64)]))
    assert len(store.rows()) == 3
    store.release()


def test_a_large_video_is_put_in_parts_and_only_once(proxy: Proxy, root: str) -> None:
    """In parts from 64 MiB on; the second of two writers is refused when it says that its parts are all, and leaves
    none behind. Smaller ones are one request."""
    store = Store(root)
    large = np.random.default_rng(0).bytes(2**20) * 70
    began = time.perf_counter()
    assert store.files.create("videos/large", large)
    assert proxy.taken() == {"POST uploads": 2, "PUT": 3}
    assert not store.files.create("videos/large", large[::-1])
    proxy.taken()
    assert store.read("videos/large") == large
    assert proxy.taken() == {"GET": 1}
    assert store.files._fs.call_s3("list_multipart_uploads", Bucket=root[5:-4]).get("Uploads", []) == []  # type: ignore[attr-defined]
    assert store.files.create("videos/small", large[: 63 * 2**20])
    assert proxy.taken()["PUT"] == 1
    print(f"{time.perf_counter() - began:.1f} s")


def test_credentials_that_expire_amid_an_upload_are_read_anew(
    proxy: Proxy, root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The large video is put whole, and once."""
    profile = tmp_path / "credentials"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))

    def renew(token: str) -> None:
        user = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "aws_session_token": token}
        profile.write_text("[default]\n" + "".join(f"{name}={value}\n" for name, value in user.items()))

    renew("first")
    s3fs.S3FileSystem.clear_instance_cache()
    store, guard, parts = Store(root), Guard("first"), 0

    def trouble(kind: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
        nonlocal parts
        parts += kind == "PUT"
        if parts == 2 and guard.token == "first":
            guard.token = "second"
            renew("second")
        return guard(kind, headers)

    proxy.trouble = trouble
    large = np.random.default_rng(0).bytes(2**20) * 70
    assert store.files.create("videos/large", large)
    assert guard.refused
    assert store.read("videos/large") == large
    assert not store.files.create("videos/large", large)
