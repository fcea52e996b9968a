"""`numina prompts`: prompt sets made, imported, enhanced and checked."""

import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from cluster.cli.options import Seed
from cluster.cli.terminal import bar, say
from numina.errors import InputError

prompts = typer.Typer(no_args_is_help=True, help="Make, import, check and enhance prompt sets.")

World = Literal["captions", "testbed"]
Writers = Literal["rules", "testbed", "endpoint", "local"]
SHOWN_NOUNS = 12
SHOWN_NOTES = 10

Output = Annotated[str, typer.Argument(metavar="OUT", help="The Parquet file to write.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file with other rows.")]
MaxCount = Annotated[int, typer.Option(help="The largest count that a target may have.")]
Key = TypeVar("Key", str, int)


@prompts.command("check")
def prompts_check(
    source: Annotated[str, typer.Argument(metavar="SET", help="A Parquet file, folder or glob, or testbed:demo.")],
    write: Annotated[str | None, typer.Option(help="Write the set with its targets filled in to this file.")] = None,
    max_count: MaxCount = 20,
) -> None:
    """Check a prompt set and print the targets of every row."""
    from cluster.job.prepared import prompt_path
    from cluster.prompts.check import read_prompts
    from cluster.prompts.write import write_targets
    from cluster.storage.destination import check_file

    if write is not None:
        check_file("--write", write, ".parquet")
    path = prompt_path(source)
    for row in read_prompts(path, max_count=max_count):
        targets = ", ".join(f"{target.count} {target.noun}" for target in row.targets)
        say(f"{row.id or row.index}: {targets}  {row.prompt}")
    if write:
        say(f"{write}: {write_targets(path, write, max_count=max_count)} rows")


@prompts.command("import")
def prompts_import(
    source: Annotated[
        str, typer.Argument(help="A txt, csv or jsonl file, or a folder with prompts.txt and noun_counts.jsonl.")
    ],
    output: Output,
    counts: Annotated[
        str | None, typer.Option(help="A jsonl file with the counts for each line of a txt file.")
    ] = None,
    max_count: MaxCount = 20,
    force: Force = False,
) -> None:
    """Convert a list of prompts or a benchmark to a prompt set; writes nothing if a line has a problem."""
    from cluster.prompts.importing import import_prompts
    from cluster.storage.destination import check_file

    check_file("OUT", output, ".parquet")
    with bar("importing prompts") as read:
        found = import_prompts(
            source, output, counts=counts, max_count=max_count, force=force, report=lambda rows: read(rows, rows)
        )
    for note in found.renamed[:SHOWN_NOTES]:
        say(note)
    if len(found.renamed) > SHOWN_NOTES:
        say(f"and {len(found.renamed) - SHOWN_NOTES} more such nouns")
    say(f"{output}: {found.rows} prompts, {len(found.nouns)} nouns, counts {_spread(found.counts)}")
    say(f"nouns: {_most(found.nouns)}")


@prompts.command("make")
def prompts_make(
    output: Output,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Number of prompts to make.")] = 100,
    seed: Seed = 0,
    world: Annotated[
        World,
        typer.Option(help="captions: everyday objects; testbed: scenes that the embedded model was not trained on."),
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
    if world == "testbed":
        from cluster.prompts.testbed import SCHEMA, unseen_prompts

        if nouns or templates:
            raise InputError("--nouns and --templates need --world captions: the embedded model has a fixed vocabulary")
        written = promptwrite.write_set(output, SCHEMA, [unseen_prompts(number, seed, **numbers)], force=force)
    else:
        given: dict[str, Any] = {name: value for name, value in (numbers | words).items() if value is not None}
        made = promptmake.made_prompts(promptmake.Recipe(seed=seed, **given), number)
        written = promptwrite.write_set(output, promptmake.SCHEMA, made, force=force)
    say(f"{output}: {written} prompts")


@prompts.command("enhance")
def prompts_enhance(
    source: Annotated[str, typer.Argument(metavar="SET", help="A Parquet file, folder or glob, or testbed:demo.")],
    output: Output,
    by: Annotated[
        Writers,
        typer.Option(
            "--with",
            help="How to rewrite: by rules, by the embedded model's rules, by a chat endpoint, or by a local model.",
        ),
    ] = "rules",
    url: Annotated[
        str | None, typer.Option(help="The URL of an OpenAI-compatible endpoint, e.g. http://host:8000/v1.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model's name at the endpoint, or the folder of a local model.")
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Number of simultaneous requests to the endpoint.")] = 8,
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
    say(f"{output}: {sum(rows.values())} prompts; {', '.join(f'{number} by {name}' for name, number in rows.items())}")


def _given(option: str, value: str | None, by: str) -> str:
    if not value:
        raise InputError(f"--with {by} needs {option}; see numina prompts enhance --help")
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
