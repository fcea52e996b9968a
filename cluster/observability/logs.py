"""Logs: one handler on stderr, lines that say which gang and which clip they are about, no secrets.

    set_up("json", gang="gang-0")          once per process
    with about(key=clip.key):              every line from here, libraries' included, carries the key
        log.info("guided")

As text a line is for reading; as JSON it is one object: time (UTC), level, logger, message, gang, key (empty where
unknown), exception where there is one, and whatever `extra` holds.
"""

import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType
from typing import Any, TextIO

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from cluster.private.ray import AUTHENTICATION_LOGGER, TIMESTAMP_FIELD

CHATTY = ("asyncio", "botocore", "aiobotocore", "s3fs", "fsspec", "urllib3", "httpx", "matplotlib", "filelock", "ray")
"""Loggers of libraries that tell their every step: from them, warnings are enough."""

_SECRETS = (
    # Userinfo of a URL. AWS keys hold slashes, so that with a colon before it all up to the last @ counts as userinfo.
    (re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(?:[^\s/]*|[^\s:]*:\S*)@"), r"\1***@"),
    (re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b"), r"\1***"),
    (
        re.compile(
            r"(?i)((?:secret(?:[_-]?access)?(?:[_-]?key)?|(?:session|security)[_-]?token|passw(?:or)?d|x-amz-(?:signature"
            r"|credential)|[?&]sig)[\"']?\s*[=:]\s*[\"']?)[^\s\"',;&]+"
        ),
        r"\1***",
    ),
)

_about: ContextVar[Mapping[str, str]] = ContextVar("about", default=MappingProxyType({}))
_gang = ""  # the process's own


def set_up(format: str, *, gang: str | None = None) -> None:
    """Makes this process's log, as `text` or `json`; `gang` is on each of its lines. The last call counts.

    Ray has a handler of its own, which is taken away here; `ray.init(configure_logging=False)` doesn't bring it back.
    """
    global _gang
    _gang = gang or ""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, _StderrHandler):
            root.removeHandler(handler)
    root.addHandler(_StderrHandler(_JsonLines() if format == "json" else _TextLines()))
    root.setLevel(logging.INFO)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger(AUTHENTICATION_LOGGER).setLevel(logging.ERROR)
    for handler in (ray := logging.getLogger("ray")).handlers[:]:
        ray.removeHandler(handler)
    ray.propagate = True
    logging.captureWarnings(True)
    sys.excepthook = _log_crash if format == "json" else sys.__excepthook__


def are_json() -> bool:
    """Whether this process's log is JSON: then nothing else should be printed."""
    handlers = logging.getLogger().handlers
    return any(isinstance(handler.formatter, _JsonLines) for handler in handlers if isinstance(handler, _StderrHandler))


@contextmanager
def about(*, gang: str = "", key: str = "") -> Iterator[None]:
    """All that this thread logs inside carries the gang and the clip's key; `extra` of a single line comes first."""
    token = _about.set({**_about.get(), **{name: value for name, value in (("gang", gang), ("key", key)) if value}})
    try:
        yield
    finally:
        _about.reset(token)


def redact(text: str) -> str:
    """A text without the secrets that libraries put into messages: userinfo of URLs, AWS keys, signatures."""
    for secret, shown in _SECRETS:
        text = secret.sub(shown, text)
    return text


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at the moment: a live display redirects it, so that lines go above it."""

    def __init__(self, formatter: logging.Formatter):
        logging.Handler.__init__(self)
        self.setFormatter(formatter)
        self.addFilter(_say_about)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def _say_about(record: logging.LogRecord) -> bool:
    for name, value in {"gang": _gang, "key": "", **_about.get()}.items():
        setattr(record, name, getattr(record, name, None) or value)
    return True


class _TextLines(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", datefmt="%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        where = " ".join(filter(None, (getattr(record, "gang", ""), getattr(record, "key", ""))))
        return super().formatMessage(record) + (f" [{where}]" if where else "")

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _JsonLines(JsonFormatter):
    def __init__(self) -> None:
        super().__init__(
            ["time", "levelname", "name", "message", "gang", "key"],
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception", "stack_info": "stack"},
            reserved_attrs=[*RESERVED_ATTRS, TIMESTAMP_FIELD],
            json_ensure_ascii=False,
        )

    def format(self, record: logging.LogRecord) -> str:
        record.time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return super().format(record)

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        return {name: _redacted(value) for name, value in log_data.items()}


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {name: _redacted(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redacted(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float)) else redact(str(value))


def _log_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logging.getLogger("numina").critical("%s", error or kind.__name__, exc_info=(kind, error, trace))
