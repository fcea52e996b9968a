"""What an output's jobs are: `run.json`, which its first start wrote and later ones must agree with, and `runs/`."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from cluster.dataset.leases import Leases
from cluster.keys import canonical, canonical_json
from cluster.storage.open import check_promise
from cluster.storage.protocol import Files
from numina.errors import DamageError, OutputError

FORMAT = "numina-output/1"

_ABSENT = object()


class RunRecord:
    """The configuration of one output, and the record of every start."""

    def __init__(self, files: Files, leases: Leases, owner: str) -> None:
        self._files = files
        self._leases = leases
        self._owner = owner

    def open(
        self,
        config: Mapping[str, Any],
        *,
        asked: int | None,
        info: Mapping[str, Any] | None,
        hub: Mapping[str, str] | None,
        single_writer: bool,
    ) -> None:
        """As `Store.open_run`."""
        begun = self.check(config) is not None
        if not single_writer:
            check_promise(self._files)
        if not begun:
            pins = {"hub": hub} if hub else {}
            self._files.create("run.json", json_bytes({"format": FORMAT, "config": config, **pins}))
            self.check(config)
        started = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        record = {"started": started, "asked": asked, "info": info or {}, "hub": hub or {}}
        self._files.create(f"runs/{started}-{self._owner[:8]}.json", json_bytes(record))

    def check(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """As `Store.check_run`."""
        self._leases.refuse((lease for lease in self._leases.in_the_way() if lease.cleaning), "a clean-up works alone")
        kept = self.config()
        if kept is None:
            self._refuse_foreign()
        else:
            self._refuse_difference(kept, json.loads(canonical_json(config)))
        return kept

    def config(self) -> dict[str, Any] | None:
        """What enters the keys of this output, as its first run wrote it; None before that."""
        run = self._run_json()
        if run is None:
            return None
        config: dict[str, Any] = run["config"]
        return config

    def hub_commits(self) -> dict[str, str]:
        """The commit of every hub id that the output's jobs had, that of the first start that had it."""
        run = self._run_json()
        found: dict[str, str] = {}
        for record in [run, *self.starts()] if run else []:
            found = {**record.get("hub", {}), **found}
        return found

    def latest(self) -> dict[str, Any] | None:
        """What the latest start of a job recorded."""
        latest = max(self._files.names("runs"), default=None)
        return read_json(self._files, f"runs/{latest}", "remove it") if latest else None

    def starts(self) -> list[dict[str, Any]]:
        """What every start of a job recorded, the first one first."""
        return [read_json(self._files, f"runs/{name}", "remove it") for name in sorted(self._files.names("runs"))]

    def _run_json(self) -> dict[str, Any] | None:
        root = self._files.root
        try:
            run = json.loads(self._files.read("run.json"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DamageError(f"{root}/run.json isn't JSON ({error}); restore it or use another output") from error
        if not isinstance(run, dict) or run.get("format") != FORMAT:
            found = run.get("format") if isinstance(run, dict) else run
            raise OutputError(
                f"{root}/run.json has format {found!r}, this version reads {FORMAT!r}: "
                "use the version that wrote it, or another output"
            )
        return run

    def _refuse_foreign(self) -> None:
        entries = sorted(entry for entry in self._files.names() if entry != "lost+found")
        if entries and "run.json" not in entries:
            shown = ", ".join(entries[:5]) + (", …" if len(entries) > 5 else "")
            raise OutputError(
                f"output {self._files.root!r} has no run.json but holds {len(entries)} other entries ({shown}): "
                "give an empty or a new folder"
            )

    def _refuse_difference(self, kept: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        before, now = _flat(kept), _flat(config)
        names = [name for name in sorted(before | now) if before.get(name, _ABSENT) != now.get(name, _ABSENT)]
        if names:
            lines = [f"  {name}: {_shown(before, name)} there, {_shown(now, name)} now" for name in names]
            raise OutputError(
                f"output {self._files.root!r} was started with another configuration:\n" + "\n".join(lines) + "\n"
                "put these values back to resume, or give another output: one dataset has one configuration"
            )


def json_bytes(value: Any) -> bytes:
    """Canonical values as JSON that people read."""
    return (json.dumps(canonical(value), sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode(
        errors="backslashreplace"  # half a surrogate pair, as JSON writes it
    )


def read_json(files: Files, name: str, remedy: str) -> dict[str, Any]:
    """A JSON mapping. Raises DamageError with the remedy where it isn't one."""
    try:
        content = json.loads(files.read(name))
    except ValueError as error:
        raise DamageError(f"{files.root}/{name} isn't JSON ({error}): {remedy}") from error
    if not isinstance(content, dict):
        raise DamageError(f"{files.root}/{name} holds {content!r}, must be a mapping: {remedy}")
    return content


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Leaves by dotted name; lists are leaves."""
    if not isinstance(value, Mapping):
        return {name: value}
    return {
        path: leaf
        for key, item in value.items()
        for path, leaf in _flat(item, f"{name}.{key}" if name else key).items()
    }


def _shown(leaves: Mapping[str, Any], name: str) -> str:
    return json.dumps(leaves[name], ensure_ascii=False) if name in leaves else "absent"
