"""`numina calibrate`: the method's settings for one's own model, prompts and judge."""

import re
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.options import FAILED, STOPPED, Config, Overrides
from cluster.cli.terminal import amount, job_progress, say, tell
from cluster.observability.logs import redact, set_up

CANDIDATES = "calibrate/candidates"


def calibrate(
    config: Config = None,
    overrides: Overrides = None,
    write: Annotated[
        Path | None, typer.Option(help="Write the chosen settings to this YAML file, too; for method=FILE.yaml.")
    ] = None,
) -> None:
    """Find the method's settings for a model, prompts and a judge by a race; resumes like `run`.

    Takes two more overrides: budget=60 (clips) or budget=8h (GPU-hours), and judge=NAME, short for verify.judge=NAME.
    The candidates are the job's variants or, without any, those in configs/calibrate/candidates.yaml. Writes
    calibrated.yaml and calibration.html to the output.
    """
    from cluster.calibration.calibrate import Budget, Calibration
    from cluster.calibration.page import PAGE, page
    from cluster.calibration.written import NAME, method_file, reading_warning, standing_lines, verdict_text
    from cluster.job.begun import as_begun
    from cluster.job.config import load_job
    from cluster.storage.destination import check_file, write_file
    from cluster.storage.open import open_files
    from numina.errors import ConfigError

    given = dict(text.split("=", 1) for text in overrides or [] if text.startswith("budget="))
    if "budget" not in given:
        raise ConfigError(
            "budget isn't given; give a number of clips such as budget=60, or GPU-hours such as budget=8h"
        )
    budget = Budget.parse(given["budget"])
    rest = [f"verify.{text}" if re.match("judge=[^{]", text) else text for text in overrides or []]
    settings = [text for text in rest if not text.startswith("budget=")]
    job = load_job(config, settings, extra=CANDIDATES)
    set_up(job.cluster.log_format)
    job = as_begun(job, config, settings, extra=CANDIDATES)
    if write is not None:
        check_file("--write", write, ".yaml")
    calibration = Calibration(job, budget)
    tell(calibration.plan())
    with job_progress() as report:
        result = calibration.run(report, tell)
    for line in standing_lines(result.standings):
        say(line)
    if result.stopped:
        tell(f"stopped before the race was over, and {NAME} isn't written; the same command continues")
        raise typer.Exit(STOPPED)
    text, files, output = method_file(result), open_files(job.output, single_writer=True), redact(job.output)
    files.replace(NAME, text.encode())
    files.replace(PAGE, page(result).encode())
    if write is not None:
        write_file(write, text.encode())
    for own in result.agreement:
        say(f"layout read as {result.judge} counts, {own.of}: {own.share:.2f} of {own.nouns}")
    if warning := reading_warning(result):
        say(f"warning: {warning}")
    say(verdict_text(result))
    say(f"settings: {write or f'{output}/{NAME}'}; use them with method={write or f'{output}/{NAME}'}")
    say(f"page: {output}/{PAGE}")
    if result.failed:
        tell(f"{amount(result.failed, 'clips')} failed, see {output}/failures; add retry_failed=true to try them again")
        raise typer.Exit(FAILED)
