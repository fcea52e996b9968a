"""What logs promise: every line says which gang and clip it is about, as text or as one JSON object; no secrets."""

import json
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable

import pytest

from cluster.observability.logs import about, are_json, redact, set_up

log = logging.getLogger("cluster.test")
Lines = Callable[[], list[dict[str, str]]]


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    """The objects that were logged since."""
    return lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_is_one_object(lines: Lines) -> None:
    """Time in UTC, level, logger, message, gang and key on every line, the exception where there is one."""
    set_up("json", gang="gang-3")
    assert are_json()
    try:
        raise ValueError("a\nb")
    except ValueError:
        log.exception("clip %d of %s", 3, "ü\n")
    [line] = lines()
    assert line["time"].endswith("+00:00")
    assert line | {"time": "", "exception": ""} == {
        "time": "",
        "level": "ERROR",
        "logger": "cluster.test",
        "message": "clip 3 of ü\n",
        "gang": "gang-3",
        "key": "",
        "exception": "",
    }
    assert line["exception"].endswith("ValueError: a\nb")


def test_lines_carry_what_they_are_about(lines: Lines) -> None:
    """Contexts nest and end, other loggers' lines are inside too, `extra` comes first, other threads are apart."""
    set_up("json", gang="gang-0")
    with about(key="ab"):
        logging.getLogger("a.library").warning("inside")
        with about(gang="gang-1"):
            log.info("nested")
            log.info("explicit", extra={"key": "cd", "gang": "gang-2", "seconds": 1.5})
        thread = threading.Thread(target=log.info, args=("elsewhere",))
        thread.start()
        thread.join()
    log.info("outside")
    said = lines()
    assert [(line["gang"], line["key"]) for line in said] == [
        ("gang-0", "ab"),
        ("gang-1", "ab"),
        ("gang-2", "cd"),
        ("gang-0", ""),
        ("gang-0", ""),
    ]
    assert said[2]["seconds"] == 1.5


def test_text_is_for_reading(capsys: pytest.CaptureFixture[str]) -> None:
    """Time, level, message, and in brackets what it is about; one line, also where it is set up twice."""
    set_up("json")
    set_up("text", gang="gang-0")
    assert not are_json()
    with about(key="ab"):
        log.warning("%s is slow", "layout")
    [line] = capsys.readouterr().err.splitlines()
    assert line[14:] == " WARNING layout is slow [gang-0 ab]"


def test_libraries_are_heard_when_they_warn(lines: Lines) -> None:
    """Python's warnings are lines; what libraries only tell isn't; Ray's own handler is gone."""
    set_up("json")
    for name in ("botocore.auth", "ray.worker", "urllib3", "asyncio"):
        logging.getLogger(name).info("step")
    logging.getLogger("ray").warning("from Ray")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old form", UserWarning, stacklevel=1)
    said = [(line["logger"], line["level"]) for line in lines()]
    assert said == [("ray", "WARNING"), ("py.warnings", "WARNING")]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at s3://AKIAABCDEFGHIJKLMNOP:a/B+c=d@bucket/key gone", "at s3://***@bucket/key gone"),
        ("https://u:p@ss@host:8080/x?y=1", "https://***@host:8080/x?y=1"),
        ("('https://ghp_abc@github.com/a', 3)", "('https://***@github.com/a', 3)"),
        ("s3://bucket/a/b.parquet and me@example.org", "s3://bucket/a/b.parquet and me@example.org"),
        ("key ASIAABCDEFGHIJKLMNOP", "key ASIA***"),
        ("S3FileSystem(key='k', secret='ab/c')", "S3FileSystem(key='k', secret='***')"),
        ("{'aws_secret_access_key': 'x', 'a': 1}", "{'aws_secret_access_key': '***', 'a': 1}"),
        ("GET https://b/x?X-Amz-Signature=ab12&b=1", "GET https://b/x?X-Amz-Signature=***&b=1"),
        ("32760 tokens: 80 per clip, the secret of it", "32760 tokens: 80 per clip, the secret of it"),
    ],
)
def test_secrets_are_left_out(text: str, shown: str) -> None:
    """Userinfo, keys and signatures are gone; all else stays as it was."""
    assert redact(text) == shown


@pytest.mark.parametrize("format", ["text", "json"])
def test_no_line_has_a_secret(format: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether it is in the message, its arguments, an exception or `extra`."""
    set_up(format)
    url = 's3://me:hush"hush@bucket/x'
    log.info(url)
    log.info("%s", {"url": url})
    log.info("x", extra={"urls": [url], "more": {"url": url}})
    try:
        raise OSError(f"can't reach {url}")
    except OSError:
        log.exception("lost")
    said = capsys.readouterr().err
    assert "bucket" in said
    assert "hush" not in said


def test_a_crash_is_a_line_too() -> None:
    """With JSON an exception that nobody caught is one object, and the process fails as ever."""
    code = "from cluster.observability.logs import set_up; set_up('json'); 1 / 0"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert json.loads(line)["level"] == "CRITICAL"
    assert "ZeroDivisionError" in json.loads(line)["exception"]
