"""`numina config`: a job with the meaning of every key, all settings by prefix; and the panels of `numina --help`."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli.app import VERBS, app
from cluster.job.config import load_job
from numina.errors import ConfigError, InputError


def numina(*arguments: str) -> str:
    """A verb's output; its errors are raised."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_what_is_printed_is_a_job_file(tmp_path: Path) -> None:
    """By name, with overrides; a file; or the defaults alone."""
    file = tmp_path / "job.yaml"
    file.write_text(numina("config", "demo", "generation.steps=30"))
    assert load_job(file) == load_job("demo", ["generation.steps=30"])
    assert numina("config", str(file)) == file.read_text()
    file.write_text(numina("config", "limit=3"))
    assert load_job(file) == load_job(None, ["limit=3"])


def test_settings_are_listed_by_prefix() -> None:
    """One line each: key, type, default, unit and meaning."""
    lines = numina("config", "--keys", "cluster.step").splitlines()
    assert lines[0].split() == ["key", "type", "default", "[unit]", "meaning"]
    assert len(lines) == 2
    assert lines[1].startswith("cluster.step_timeout  float  120.0    [s] ")
    assert len(numina("config", "--keys").splitlines()) > 100
    with pytest.raises(InputError, match="at most one prefix"):
        numina("config", "--keys", "generation.", "method.")


def test_what_a_config_needs_is_said_with_its_meaning(tmp_path: Path) -> None:
    """A file may leave the checkpoint open."""
    (tmp_path / "job.yaml").write_text("model:\n  path: ???\n")
    with pytest.raises(ConfigError, match=r"job.yaml' needs model\.path=… \(a folder .* a hub id OWNER/NAME"):
        numina("config", f"{tmp_path}/job.yaml")


def test_help_groups_the_verbs() -> None:
    """Each verb stands in its panel, with a sentence."""
    shown = numina("--help")
    places = [shown.index(f" {panel} ") for panel in VERBS]
    assert places == sorted(places)
    for (panel, verbs), end in zip(VERBS.items(), [*places[1:], len(shown)], strict=True):
        for verb in verbs:
            assert f" {verb} " in shown[shown.index(f" {panel} ") : end]
