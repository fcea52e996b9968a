"""`numina prompts`: prompt sets made, imported, enhanced and checked."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cluster.cli.options import Seed
from cluster.cli.terminal import amount, bar, say
from numina.errors import InputError

if TYPE_CHECKING:
    from cluster.prompts.row import PromptRow

prompts = typer.Typer(no_args_is_help=True, help="Make, import, check, annotate and enhance prompt sets.")

Source = Annotated[
    str, typer.Argument(metavar="SET", help="A Parquet file, folder or glob, testbed:demo or scenes:demo.")
]
World = Literal["captions", "testbed", "scenes"]
Writers = Literal["rules", "testbed", "endpoint", "local"]
SHOWN_NOUNS = 12
SHOWN_NOTES = 10
SHOWN_LETTERS = 300  # of a prompt
REJECTED = "REJECTED.jsonl"

Output = Annotated[str, typer.Argument(metavar="OUT", help="The Parquet file to write.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file with other rows.")]
MaxCount = Annotated[int, typer.Option(help="The largest count that a target may have.")]
Skip = Annotated[
    bool, typer.Option("--skip", help="Leave bad rows out, and list them in REJECTED.jsonl beside the output.")
]
Rejected = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="List all problems in this JSON lines file: row, column, value, rule, remedy."),
]
Url = Annotated[str | None, typer.Option(help="The URL of an OpenAI-compatible endpoint, e.g. http://host:8000/v1.")]
Model = Annotated[str | None, typer.Option(help="The model's name at the endpoint, or the folder of a local model.")]
AtOnce = Annotated[int, typer.Option(min=1, help="Number of simultaneous requests to the endpoint.")]
TargetsFrom = Annotated[
    Literal["numerals", "numerals+articles"],
    typer.Option(help="What counts in a prompt whose targets aren't given: numerals alone, or 'a dog' as well."),
]


NearDuplicates = Annotated[
    Literal["mark", "drop", "ignore"],
    typer.Option(
        help="For prompts with equal targets and nearly equal words: name the first one in column near_duplicate_of, "
        "drop them, or don't look for them."
    ),
]


@prompts.command("check")
def prompts_check(
    source: Annotated[
        str, typer.Argument(metavar="SET", help="A Parquet file, folder or glob, testbed:demo or scenes:demo.")
    ],
    write: Annotated[str | None, typer.Option(help="Write the set with its targets filled in to this file.")] = None,
    skip: Skip = False,
    rejected: Rejected = None,
    near_duplicates: NearDuplicates = "mark",
    targets_from: TargetsFrom = "numerals+articles",
    show: Annotated[
        int, typer.Option(min=0, help="Number of rows to print: all of a small set, else doubtful ones.")
    ] = 20,
    max_count: MaxCount = 20,
) -> None:
    """Check a prompt set: how many rows ask for counts, which of these are doubtful, and what is wrong.

    Targets that aren't given are read from the prompt. Rows without counts become plain videos.
    """
    from cluster.job.prepared import prompt_path
    from cluster.prompts.row import PromptRow, TargetReading
    from cluster.prompts.write import look_over
    from cluster.storage.destination import check_file

    if write is not None:
        check_file("--write", write, ".parquet")
    first, doubtful = list[PromptRow](), list[PromptRow]()

    def tell(row: PromptRow) -> None:
        if len(first) < show:
            first.append(row)
        if row.doubts and len(doubtful) < show:
            doubtful.append(row)

    with bar("checking prompts") as report:
        found = look_over(
            prompt_path(source),
            write,
            max_count=max_count,
            reading=TargetReading(articles=targets_from == "numerals+articles"),
            skip=skip,
            rejected=_rejected(rejected, write, skip or near_duplicates == "drop"),
            near_duplicates=near_duplicates,
            report=report,
            tell=tell,
        )
    summary = found.summary
    for row in first if summary.rows <= show else doubtful:
        say(_told(row))
    if summary.rows > show and summary.doubtful > len(doubtful):
        more = summary.doubtful - len(doubtful)
        say(f"and {more:,} more doubtful rows: --show prints more, --write keeps the reasons in column targets_doubts")
    if summary.rows:
        say(f"{source}: {summary.rows:,} rows")
    for line in summary.lines():
        say(line)
    _tell_alike(len(found.alike), len(found.dropped))
    found.require(skip=skip)
    _tell_skipped(found.problems, _rejected(rejected, write, skip))
    if write:
        say(f"{write}: {summary.rows - summary.bad - len(found.dropped):,} rows")


@prompts.command("import")
def prompts_import(
    source: Annotated[
        str,
        typer.Argument(
            help="A txt, csv, tsv, json, jsonl or Parquet file, or a folder with prompts.txt and noun_counts.jsonl."
        ),
    ],
    output: Output,
    counts: Annotated[
        str | None, typer.Option(help="A jsonl file with the counts for each line of a txt file.")
    ] = None,
    prompt_column: Annotated[str | None, typer.Option(help="The column with the prompts; by default guessed.")] = None,
    keep: Annotated[
        str | None, typer.Option(help="Other columns to keep, separated by commas; by default all.")
    ] = None,
    drop: Annotated[str | None, typer.Option(help="Columns to leave out, separated by commas.")] = None,
    skip: Skip = False,
    rejected: Rejected = None,
    near_duplicates: NearDuplicates = "mark",
    targets_from: TargetsFrom = "numerals+articles",
    max_count: MaxCount = 20,
    force: Force = False,
) -> None:
    """Convert a list of prompts or a benchmark to a prompt set; writes nothing if a line has a problem."""
    from cluster.prompts.importing import import_prompts
    from cluster.prompts.meaning import Choice
    from cluster.prompts.row import TargetReading
    from cluster.storage.destination import check_file

    check_file("OUT", output, ".parquet")
    choice = Choice(prompt=prompt_column, keep=_columns(keep), drop=_columns(drop) or ())
    with bar("importing prompts") as read:
        found = import_prompts(
            source,
            output,
            counts=counts,
            choice=choice,
            max_count=max_count,
            reading=TargetReading(articles=targets_from == "numerals+articles"),
            skip=skip,
            rejected=_rejected(rejected, output, skip or near_duplicates == "drop"),
            near_duplicates=near_duplicates,
            force=force,
            report=lambda rows: read(rows, rows),
        )
    for note in found.notes:
        say(note)
    for note in found.renamed[:SHOWN_NOTES]:
        say(note)
    if len(found.renamed) > SHOWN_NOTES:
        say(f"and {len(found.renamed) - SHOWN_NOTES} more such nouns")
    spread = f", counts {_spread(found.counts)}" if found.counts else ""
    say(f"{output}: {amount(found.rows, 'prompts')}, {amount(len(found.nouns), 'nouns')}{spread}")
    for line in found.summary.lines():
        say(line)
    if found.nouns:
        say(f"nouns: {_most(found.nouns)}")
    _tell_alike(found.alike, len(found.dropped))
    _tell_skipped(found.problems, _rejected(rejected, output, skip))


@prompts.command("make")
def prompts_make(
    output: Output,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Number of prompts to make.")] = 100,
    seed: Seed = 0,
    world: Annotated[
        World,
        typer.Option(
            help="captions: everyday objects; testbed, scenes: combinations that the embedded model of this name was "
            "not trained on."
        ),
    ] = "captions",
    counts: Annotated[str | None, typer.Option(help="Counts to ask for, e.g. 1-8 or 2,4,6.")] = None,
    per_prompt: Annotated[str | None, typer.Option(help="Number of nouns in a prompt, e.g. 1-3.")] = None,
    nouns: Annotated[
        str | None, typer.Option(help="Nouns, separated by commas, or a file with one noun per line.")
    ] = None,
    templates: Annotated[
        str | None,
        typer.Option(help="A file with one sentence per line, with {targets} and optionally {place} and {time}."),
    ] = None,
    force: Force = False,
) -> None:
    """Make a prompt set of any size, balanced over nouns, counts, numbers of nouns and templates."""
    from cluster.prompts import make as promptmake
    from cluster.prompts import write as promptwrite
    from cluster.storage.destination import check_file

    check_file("OUT", output, ".parquet")
    numbers = {"counts": _numbers("--counts", counts), "per_prompt": _numbers("--per-prompt", per_prompt)}
    words = {"nouns": _words(nouns), "templates": _lines("--templates", templates) if templates else None}
    if world != "captions":
        from cluster.prompts.testbed import SCHEMA, unseen_prompts

        if nouns or templates:
            raise InputError("--nouns and --templates need --world captions: embedded models have a fixed vocabulary")
        made_rows = unseen_prompts(number, seed, model=world, **numbers)
        written = promptwrite.write_set(output, SCHEMA, [made_rows], force=force)
    else:
        given: dict[str, Any] = {name: value for name, value in (numbers | words).items() if value is not None}
        made = promptmake.made_prompts(promptmake.Recipe(seed=seed, **given), number)
        written = promptwrite.write_set(output, promptmake.SCHEMA, made, force=force)
    say(f"{output}: {amount(written, 'prompts')}")


@prompts.command("enhance")
def prompts_enhance(
    source: Annotated[
        str, typer.Argument(metavar="SET", help="A Parquet file, folder or glob, testbed:demo or scenes:demo.")
    ],
    output: Output,
    by: Annotated[
        Writers,
        typer.Option(
            "--with",
            help="How to rewrite: by rules, by the embedded model's rules, by a chat endpoint, or by a local model.",
        ),
    ] = "rules",
    url: Url = None,
    model: Model = None,
    at_once: AtOnce = 8,
    max_count: MaxCount = 20,
    force: Force = False,
) -> None:
    """Add a column `enhanced_prompt`, used by the strategy prompt_enhancement.

    A model's answers are saved in OUT.answers.jsonl as they arrive; the same command again requests only missing ones.
    """
    from cluster.job.prepared import prompt_path
    from cluster.prompts.enhance import enhance_set
    from cluster.storage.destination import check_file
    from pipelines.rewriting.llm import EndpointWriter, LocalWriter, Writer

    check_file("OUT", output, ".parquet")
    writer: Writer | None = None
    if by == "endpoint":
        writer = EndpointWriter(url=_given("--url", url, by), model=_given("--model", model, by))
    elif by == "local":
        writer = LocalWriter(folder=_given("--model", model, by))
    with bar("enhancing prompts") as report:
        rows = enhance_set(
            prompt_path(source),
            output,
            rules="testbed" if by == "testbed" else "general",
            writer=writer,
            at_once=at_once if by == "endpoint" else 1,
            max_count=max_count,
            force=force,
            report=report,
        )
    spread = ", ".join(f"{number:,} by {name}" for name, number in rows.items())
    say(f"{output}: {amount(sum(rows.values()), 'prompts')}; {spread}")


@prompts.command("annotate")
def prompts_annotate(
    source: Annotated[
        str, typer.Argument(metavar="SET", help="A Parquet file, folder or glob, testbed:demo or scenes:demo.")
    ],
    output: Output,
    by: Annotated[
        Literal["rules", "llm", "local"],
        typer.Option("--with", help="What reads the targets: rules, a chat endpoint (llm), or a local model."),
    ] = "rules",
    url: Url = None,
    model: Model = None,
    at_once: AtOnce = 8,
    targets_from: TargetsFrom = "numerals+articles",
    max_count: MaxCount = 20,
    force: Force = False,
) -> None:
    """Fill in `targets` by rules or by a language model; targets that the set gives stay.

    Column `targets_by` says what filled them, `targets_rules` what the rules read where a model reads something else.
    A model's answers are saved in OUT.answers.jsonl as they arrive; the same command again requests only missing ones.
    """
    from cluster.job.prepared import prompt_path
    from cluster.prompts.annotate import annotate_set
    from cluster.prompts.row import TargetReading
    from cluster.storage.destination import check_file
    from pipelines.rewriting.llm import EndpointWriter, LocalWriter, Writer

    check_file("OUT", output, ".parquet")
    writer: Writer | None = None
    if by == "llm":
        writer = EndpointWriter(url=_given("--url", url, by), model=_given("--model", model, by), name="llm")
    elif by == "local":
        writer = LocalWriter(folder=_given("--model", model, by), cue="JSON:")
    with bar("annotating prompts") as report:
        found = annotate_set(
            prompt_path(source),
            output,
            writer=writer,
            at_once=at_once if by == "llm" else 1,
            max_count=max_count,
            reading=TargetReading(articles=targets_from == "numerals+articles"),
            force=force,
            report=report,
        )
    spread = ", ".join(f"{number:,} by {name}" for name, number in found.by.items())
    say(f"{output}: {amount(found.summary.rows, 'prompts')}; {spread}")
    for line in found.summary.lines():
        say(line)
    if found.differ:
        say(f"  {found.differ:,} rows that the rules read differently: column targets_rules")


def _rejected(rejected: str | None, output: str | None, skip: bool) -> str | None:
    """The file for all problems: the given one or, of what is skipped, one beside the output."""
    from cluster.prompts.write import split_path

    if rejected is not None or not skip or output is None:
        return rejected
    return f"{split_path(output)[0].rstrip('/')}/{REJECTED}"


def _tell_alike(alike: int, dropped: int) -> None:
    if alike:
        told = (
            f"{dropped:,} of them left out"
            if dropped
            else "column near_duplicate_of of the written set names the first"
        )
        say(f"  {alike:,} near-duplicates of an earlier prompt with the same targets: {told}")


def _tell_skipped(problems: Sequence[Any], rejected: str | None) -> None:
    from cluster.prompts.problems import by_rule

    if problems:
        listed = f"; all problems are in {rejected}" if rejected else "; --rejected FILE lists all problems"
        bad = len({problem.row for problem in problems})
        say(f"skipped {bad:,} bad rows: {by_rule(problems)}{listed}")


def _told(row: "PromptRow") -> str:
    """A row with its targets, and why they may be wrong."""
    targets = ", ".join(f"{target.count} {target.noun}" for target in row.targets) or "no count"
    doubts = "; ".join(f"{own.doubt.told} ({own.text})" for own in row.doubts)
    prompt = row.prompt if len(row.prompt) <= SHOWN_LETTERS else f"{row.prompt[: SHOWN_LETTERS - 1]}…"
    return f"{row.id or row.index}: {targets}{f' [doubtful: {doubts}]' if doubts else ''}  {prompt}"


def _columns(names: str | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(name.strip() for name in names.split(",") if name.strip())


def _given(option: str, value: str | None, by: str) -> str:
    if not value:
        raise InputError(f"--with {by} needs {option}; see --help")
    return value


def _numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """`1-3,5` as 1, 2, 3, 5."""
    if text is None:
        return None
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InputError(f"{option} {text!r} isn't a list of numbers; write for example 1-8 or 2,4,6")
        numbers += range(int(first), int(last if dash else first) + 1)
    return tuple(numbers)


def _words(nouns: str | None) -> tuple[str, ...] | None:
    if nouns is None or os.path.isfile(nouns):
        return _lines("--nouns", nouns) if nouns else None
    return tuple(noun.strip() for noun in nouns.split(","))


def _lines(option: str, path: str) -> tuple[str, ...]:
    """A file's lines, without blank ones and comments."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{option} {path!r} can't be read: {error}; give a text file in UTF-8") from error
    return tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))


def _spread(counts: Counter[int]) -> str:
    """`1 × 30, 2 × 12`."""
    return ", ".join(f"{count} × {number}" for count, number in sorted(counts.items()))


def _most(nouns: Counter[str]) -> str:
    shown = ", ".join(f"{noun} × {number}" for noun, number in nouns.most_common(SHOWN_NOUNS))
    return f"{shown}, and {len(nouns) - SHOWN_NOUNS} others" if len(nouns) > SHOWN_NOUNS else shown
