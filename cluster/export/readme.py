"""What stands beside closed shards: how a trainer reads them, with the metadata by which `datasets` finds them."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cluster.export.arrivals import Rule
from cluster.export.config import ExportConfig
from cluster.export.formats import FORMATS

FOLDER = Path(__file__).parent / "templates"


def page(template: str, **values: object) -> str:
    """A page in Markdown."""
    pages = Environment(
        loader=FileSystemLoader(FOLDER), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return pages.get_template(template).render(**values)


def readme(config: ExportConfig, rule: Rule) -> str:
    """The page of an export that grows."""
    return page("shards.md.j2", config=config, rule=rule, ending=FORMATS[config.to].ending)
