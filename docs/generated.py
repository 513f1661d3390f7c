"""What the pages take out of the code when they are built, so that nothing is typed twice.

Directives: ``arrow-schema`` (columns of a table), ``settings-groups`` (what decides a mask, group by group),
``command-help`` (flags of every command), ``package-imports`` (which package stands on which) and ``benchmark-protocols``
(the papers' constants).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from importlib import import_module
from itertools import chain
from typing import Any

import grimp
import pyarrow as pa
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from jobs.cli import COMMANDS
from jobs.flags import Flag
from ovss_core.config import SegmenterConfig
from ovss_core.evaluation.benchmarks import BENCHMARKS, protocol_config

ROOTS = ("jobs", "pipelines", "ovss_core")


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table; cells are Markdown, and may hold bars."""
    lines = [head, ["---"] * len(head), *rows]
    cells = ([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def describe_schema(schema: pa.Schema) -> str:
    """Write the columns of a table of the output: name, type and meaning.

    Raises:
        ValueError: A column has no meaning.
    """
    rows = []
    for column in schema:
        meaning = (column.metadata or {}).get(b"description")
        if meaning is None:
            raise ValueError(f"the column {column.name!r} has no description in its schema")
        nullable = "" if not column.nullable else " or null"
        rows.append((f"`{column.name}`", f"{describe_type(column.type)}{nullable}", meaning.decode()))
    return markdown_table(("column", "type", "meaning"), rows)


def describe_type(kind: pa.DataType) -> str:
    """Write an Arrow type in words: ``list of {index: int32, name: string}``."""
    if pa.types.is_list(kind):
        return f"list of {describe_type(kind.value_type)}"
    if pa.types.is_struct(kind):
        return f"{{{', '.join(f'{entry.name}: {describe_type(entry.type)}' for entry in kind)}}}"
    return str(kind).replace("float", "float32")


def describe_flags(flags: Iterable[Flag]) -> Iterator[tuple[str, str]]:
    """Yield each section of a command's help with the table of its flags."""
    sections: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for flag in flags:
        spelling = f"`{flag.option}`" if flag.switch else f"`{flag.option} {flag.metavar}`"
        sections[flag.section].append((spelling, f"`{flag.dest}`", flag.help))
    for section, rows in sections.items():
        yield section, markdown_table(("flag", "key in a settings file", "meaning"), rows)


def describe_groups() -> str:
    """Write the dataclasses that decide a mask: the whole, and every group of its settings."""
    groups = [entry.type for entry in fields(SegmenterConfig)]
    listed = [
        f".. autoclass:: {kind.__module__}.{kind.__name__}"
        for kind in (SegmenterConfig, *groups)
        if isinstance(kind, type) and is_dataclass(kind)
    ]
    listed[0] += "\n   :members: deciding, from_dict, to_dict"
    return "\n".join(["```{eval-rst}", *listed, "```"])


def describe_commands() -> str:
    """Write the flags of every command, section by section."""
    pages = []
    for name, (module, _) in COMMANDS.items():
        sections = describe_flags(import_module(module).build_parser().settings)
        tables = (f"*{section}*\n\n{table}" for section, table in sections)
        pages.append("\n\n".join([f"### ovss {name}", *tables]))
    return "\n\n".join(pages)


def describe_imports(graph: grimp.ImportGraph) -> str:
    """Write which package imports which, packages of one root together, and what each is for."""
    rooms = sorted(
        name
        for name in graph.modules
        if "." in name and name.count(".") == 1 and (graph.find_children(name) or _is_apart(name))
    )
    rows = []
    for room in [*(root for root in ROOTS if root == "jobs"), *rooms]:
        found = {_room_of(target, rooms) for target in _imported(graph, room)} - {room, None}
        purpose = (import_module(room).__doc__ or "").strip().partition("\n")[0]
        names = ", ".join(f"`{name}`" for name in sorted(name for name in found if name))
        rows.append((f"`{room}`", purpose, names or "nothing of this project"))
    return markdown_table(("package", "what it is", "imports"), rows)


def _is_apart(name: str) -> bool:
    return not name.startswith("jobs.") and not name.rpartition(".")[2].startswith("_")


def _room_of(module: str, rooms: Sequence[str]) -> str | None:
    return next((room for room in rooms if module == room or module.startswith(f"{room}.")), None)


def _imported(graph: grimp.ImportGraph, room: str) -> Iterator[str]:
    members = {room, *graph.find_descendants(room)}
    return chain.from_iterable(graph.find_modules_directly_imported_by(module) for module in members)


def describe_protocols() -> str:
    """Write the constants of both papers' evaluations, benchmark by benchmark."""
    rows = []
    for name, benchmark in BENCHMARKS.items():
        plain, words = protocol_config(name, purify="none")
        purified, purified_words = protocol_config(name, purify="freecp")
        rows.append(
            (
                f"`{name}`",
                str(benchmark.classes),
                f"`{words.name}`, {_windows(plain)}, {_labels(plain)}",
                f"`{purified_words.name}`, {_windows(purified)}, {_thresholds(purified)}",
            )
        )
    return markdown_table(("benchmark", "classes", "SFP and plain hosts", "FreeCP"), rows)


def _windows(config: SegmenterConfig) -> str:
    return f"{config.windows.size} of {config.windows.short_side} pixels"


def _labels(config: SegmenterConfig) -> str:
    labels = config.labels
    area = "" if labels.min_area is None else f", area {labels.min_area:g}"
    least = "" if not labels.min_probability else f", p {labels.min_probability:g}"
    return f"scale {labels.logit_scale:g}{least}{area}"


def _thresholds(config: SegmenterConfig) -> str:
    purification = config.purification
    return f"RP {purification.redundancy_threshold:g}, AP {purification.ambiguity_threshold:g}"


class _Generated(SphinxDirective):
    """A directive whose content a function writes as Markdown."""

    def written(self, text: str) -> list[nodes.Node]:
        """Read Markdown as if it stood on the page, which changes with the code it came from."""
        self.env.note_reread()
        return self.parse_text_to_nodes(text, allow_section_headings=True)


class ArrowSchema(_Generated):
    """``arrow-schema:: pipelines.run.schema.LABELS``: version and columns of a table."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Write the table."""
        module, _, name = self.arguments[0].rpartition(".")
        schema = getattr(import_module(module), name)
        version = schema.metadata[b"ovss_schema"].decode()
        return self.written(f"Version `{version}`.\n\n{describe_schema(schema)}")


def _directive(write: Callable[[], str]) -> type[_Generated]:
    """Make a directive without arguments of a function that writes Markdown."""

    class Written(_Generated):
        def run(self) -> list[nodes.Node]:
            return self.written(write())

    return Written


def setup(app: Sphinx) -> dict[str, Any]:
    """Offer the directives to the pages."""
    app.add_directive("arrow-schema", ArrowSchema)
    app.add_directive("settings-groups", _directive(describe_groups))
    app.add_directive("command-help", _directive(describe_commands))
    app.add_directive(
        "package-imports", _directive(lambda: describe_imports(grimp.build_graph(*ROOTS, cache_dir=None)))
    )
    app.add_directive("benchmark-protocols", _directive(describe_protocols))
    return {"parallel_read_safe": True}
