"""All settings of a job in words: a job as commented YAML, and the page `configs/README.md`.

python -m cluster.job.reference > configs/README.md     (`make settings`)
"""

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Template

from cluster.job.config import JobConfig, config_folder
from cluster.job.settings import Setting, settings_of
from cluster.job.values import literal
from numina.errors import ConfigError
from pipelines.judges.base import JudgeConfig

COMMENT_COLUMN = 34  # of a comment beside a value
LINE = 120  # characters; a longer comment goes above its key


def job_settings() -> list[Setting]:
    """Every setting of a job, sections included; those of its judge under `judge.`."""
    found = list[Setting]()
    for setting in settings_of(JobConfig):
        found.append(setting)
        if setting.key == "judge":
            found += settings_of(JudgeConfig, "judge.")
    return found


def settings_under(prefix: str) -> list[Setting]:
    """The settings, without sections, whose key begins so. Raises ConfigError if there is none."""
    known = job_settings()
    if found := [setting for setting in known if setting.key.startswith(prefix) and not setting.is_section]:
        return found
    sections = ", ".join(sorted({f"{setting.key.split('.')[0]}." for setting in known if "." in setting.key}))
    raise ConfigError(f"no setting begins with {prefix!r}; give a prefix such as {sections} or none to list all")


# --- a job as YAML ---


def commented_yaml(job: JobConfig) -> str:
    """A job file that loads to the same job; every key has its unit and meaning as a comment.

    A variant shows only its differences from `method`.
    """
    settings = {setting.key: setting for setting in job_settings()}
    values = {item.name: getattr(job, item.name) for item in fields(job)}
    values = dict(sorted(values.items(), key=lambda item: is_dataclass(item[1])))  # sections last
    values["variants"] = {name: _changes(job.method, variant) for name, variant in job.variants.items()}
    return "\n".join(_lines(values, settings, "", "")) + "\n"


def _changes(base: Any, other: Any) -> dict[str, Any]:
    """The fields of a nested dataclass that differ."""
    changed = dict[str, Any]()
    for item in fields(base):
        one, two = getattr(base, item.name), getattr(other, item.name)
        if one != two:
            changed[item.name] = _changes(one, two) if is_dataclass(one) else two
    return changed


def _lines(values: Mapping[str, Any], settings: Mapping[str, Setting], prefix: str, indent: str) -> Iterator[str]:
    for name, value in values.items():
        key, setting = f"{prefix}{name}", settings.get(f"{prefix}{name}")
        comment = setting.text if setting else ""
        label = f"{indent}{scalar(name)}:"
        if is_dataclass(value):
            value = {item.name: getattr(value, item.name) for item in fields(value)}
        if isinstance(value, Mapping) and value:
            if setting and setting.is_section and not indent:
                yield ""
            yield from _with_comment(label, comment)
            below = "method." if prefix == "variants." else f"{key}."
            yield from _lines(value, {} if prefix == "variants." else settings, below, indent + "  ")
        elif isinstance(value, list) and any(map(is_dataclass, value)):
            yield from _with_comment(label, comment)
            for entry in value:
                given = {item.name: getattr(entry, item.name) for item in fields(entry)}
                first, *rest = _lines(given, settings, f"{key}[].", indent + "    ")
                yield f"{indent}  - {first.lstrip()}"
                yield from rest
        else:
            yield from _with_comment(f"{label} {scalar(value)}", comment)


def _with_comment(line: str, comment: str) -> Iterator[str]:
    """A line of YAML with its comment beside it, or above it if both are too long for one line."""
    beside = f"{line:<{COMMENT_COLUMN - 1}} # {comment}"
    if comment and len(beside) > LINE:
        margin = f"{' ' * (len(line) - len(line.lstrip()))}# "
        yield from textwrap.wrap(comment, LINE, initial_indent=margin, subsequent_indent=margin)
        yield line
    else:
        yield beside if comment else line


def scalar(value: Any) -> str:
    """A value as YAML on one line."""
    value = literal(value) if isinstance(value, str) else value
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"), sort_keys=False)
    return text.removesuffix("...\n").strip()


# --- configs/README.md ---


def page() -> str:
    """The text of `configs/README.md`."""
    source = (Path(__file__).parent / "templates/configs.md.j2").read_text(encoding="utf-8")
    template = Template(source, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return template.render(
        jobs=_heads(config_folder().glob("*.yaml")),
        recipes=_heads((config_folder() / "recipes").glob("*.yaml")),
        presets=_heads((config_folder() / "method").glob("*.yaml")),
        judges=_heads((config_folder() / "judge").glob("*.yaml")),
        sections=_sections(),
        cell=_cell,
        scalar=scalar,
    )


def _heads(files: Iterable[Path]) -> dict[str, str]:
    """Each file's first sentence, by its name."""
    found = {}
    for file in sorted(files):
        head = [line.lstrip("# ") for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        found[file.stem] = " ".join(head).split(". ")[0].rstrip(".")
    return found


def _sections() -> list[tuple[str, str, list[Setting]]]:
    """Key, meaning and settings of every section that has settings of its own; the job's first."""
    sections = {"": ("", list[Setting]())}
    for setting in job_settings():
        place = setting.key.rpartition(".")[0]
        if setting.is_section:
            sections[setting.key] = (setting.meaning, [])
        elif place not in sections:
            sections[place] = ("", [setting])
        else:
            sections[place][1].append(setting)
    return [(key, meaning, own) for key, (meaning, own) in sections.items() if own]


def _cell(text: str) -> str:
    """Text in a table of Markdown."""
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    print(page(), end="")
