"""The pages that the commands write, as templates of Jinja in this folder: HTML for browsers, Markdown for reports.

Whatever is put into HTML is escaped: names of images and reasons come from outside. In Markdown a value is put into a table
by the filter ``cell``, so that a bar in a name opens no column.
"""

from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def render(page: str, **values: Any) -> str:
    """Fill a template in.

    Args:
        page: Its file's name, such as ``previews.html``.
        values: What it names; one that is missing is a mistake and raises `jinja2.UndefinedError`.
    """
    return _environment().get_template(page).render(**values)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipelines", "pages"),
        autoescape=select_autoescape(("html",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": _cell, "percent": _percent}
    return environment


def _cell(value: object) -> str:
    """Write a value as a cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _percent(value: float | None) -> str:
    """Write a share of 1 in percent; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.1f}"
