"""Python and its packages, limits of the process, memory, locale and clock."""

import locale as system_locale
import resource
import sys
import time
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from cluster.doctor.check import Finding, fails, ok, trouble, warning
from cluster.doctor.needs import Needs
from cluster.storage.destination import check_output
from cluster.workers.code import ROOT, code_digest
from numina.errors import MachineError, NuminaError

SKEW_WARNS, SKEW_FAILS = 60.0, 900.0  # seconds; S3 refuses requests that are 15 minutes off
MANY_FILES = 4096
LEAST_MEMORY = 2 * 2**30  # bytes for a driver, Ray, and one process on the CPU


def python(needs: Needs) -> Finding:
    """The interpreter, and whether installed packages are those that numina was tested with."""
    from packaging.requirements import Requirement

    if needs.code not in (None, code_digest()):
        return fails(
            f"{ROOT} has other code ({code_digest()}) than the driver ({needs.code})",
            "install the same version of numina on all nodes",
        )
    here = f"Python {sys.version_info[0]}.{sys.version_info[1]}.{sys.version_info[2]}"
    try:
        asked = [Requirement(text) for text in requires("numina-video") or []]
        here += f", numina {version('numina-video')}"
    except PackageNotFoundError:
        return ok(f"{here}, numina from a folder")
    wrong = []
    for requirement in asked:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            found = "none"
        if found == "none" or not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} (needs {requirement.specifier})")
    if wrong:
        return fails(f"{here}; not as tested: {', '.join(wrong)}", "install numina anew: make install")
    return ok(here)


def open_files(needs: Needs) -> Finding:
    """Ray keeps many sockets and files open."""
    from cluster.job.joining import OPEN_FILES_REMEDY, allow_open_files

    try:
        allow_open_files()
    except MachineError as error:
        return trouble(error)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    said = f"{soft} at most"
    if soft < MANY_FILES:
        return warning(f"{said}: too few for Ray on a machine of many processes", OPEN_FILES_REMEDY)
    return ok(said)


def memory(needs: Needs) -> Finding:
    """Of the host: what is free, and no more than the container's limit leaves."""
    free = _meminfo("MemAvailable")
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        free = min(free, limit - used)
    said = f"{free / 2**30:.1f} GiB are free"
    if free < LEAST_MEMORY:
        return warning(said, "stop other processes: Ray ends processes when memory runs out")
    return ok(said)


def _meminfo(name: str) -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such file, or `max`
        return None


def locale(needs: Needs) -> Finding:
    """Names and files are UTF-8 whatever it is; a terminal may be unable to show them."""
    files, shown = sys.getfilesystemencoding(), system_locale.getencoding()
    said = f"names of files in {files}, the terminal in {shown}"
    if shown.lower().replace("-", "") != "utf8":
        return warning(f"{said}: other characters are shown as ?", "set LANG=C.UTF-8")
    return ok(said)


def clock(needs: Needs) -> Finding:
    """Against the output's storage, or else the hub: signatures and certificates are good for minutes."""
    other, whose = _storage_clock(needs), "the output's storage"
    if other is None:
        other, whose = _hub_clock(), "the hub"
    if other is None:
        return ok("nothing to compare it with: neither an output nor the hub")
    ahead = time.time() - other
    said = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} {whose}"
    remedy = "set this machine's clock, e.g. by chrony or systemd-timesyncd"
    if abs(ahead) > SKEW_FAILS and whose == "the output's storage":
        return fails(f"{said}: object stores refuse requests that are 15 minutes off", remedy)
    return warning(said, remedy) if abs(ahead) > SKEW_WARNS else ok(said)


def _storage_clock(needs: Needs) -> float | None:
    if not needs.output:
        return None
    try:
        return check_output(needs.output, single_writer=True).clock()
    except (NuminaError, OSError):  # the output's own line says it
        return None


def _hub_clock() -> float | None:
    from cluster.doctor.models import hub_headers

    try:
        return parsedate_to_datetime(hub_headers()["Date"]).timestamp()
    except (OSError, TypeError, ValueError):  # no hub, or one that doesn't say
        return None
