"""Hooks of MkDocs: the parts of the reference pages that are made from the code.

A page holds a mark such as `<!-- made: command line -->`, which is replaced when the site is built.
"""

from __future__ import annotations

import argparse
import html
import pkgutil
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

import medclipsam
from medclipsam.base.options import Options, ZeroShotOptions
from medclipsam.cohort.options import CohortOptions
from medclipsam.finetune.options import SERVED_OPTIONS, FinetuneOptions
from medclipsam.server.base.conf import ACCESS, AUDIT, LIMITS, MODELS, NETWORKS, PACS, ROUNDS
from medclipsam.server.base.settings import OIDC, SERVER, SETTINGS
from medclipsam.server.inference.networks import NetworkOptions
from medclipsam.training.options import PRESETS, TrainingOptions
from medclipsam.training.settings import RunOptions

# Opened as files, pages would load this for their search; it works where the site is served over HTTP.
_SHIM = "https://unpkg.com/iframe-worker/shim"
# What a page loads, other than what it links to.
_LOADED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?https?:|<link\b[^>]*rel=["']?(?:stylesheet|icon|preconnect)["']?[^>]*href=["']?https?:"""
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks of a page; MkDocs calls it for each page."""
    for name, make in _PARTS.items():
        mark = f"<!-- made: {name} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown


def on_post_build(config: Any, **_: Any) -> None:
    """Check that no page loads anything from elsewhere; MkDocs calls it after the build."""
    site = Path(config["site_dir"])
    for script in site.glob("assets/javascripts/bundle.*.js"):
        script.write_text(script.read_text(encoding="utf-8").replace(_SHIM, "data:text/javascript,"), encoding="utf-8")
    for page in site.rglob("*.html"):
        found = _LOADED.search(page.read_text(encoding="utf-8"))
        if found:
            raise PluginError(f"{page} loads from elsewhere: {found[0]}")


def command_line() -> str:
    """Return a section for each command, with tables of its arguments."""
    from medclipsam.cli.main import make_parser

    return "\n".join(_command(parser, about) for parser, about in _commands(make_parser(), ""))


def cohort_columns() -> str:
    """Return the columns of a cohort's table with what they hold."""
    from medclipsam.cohort.table import COLUMNS

    lines = [f"| `{name}` | {kind} | {about} |" for name, (kind, about) in COLUMNS.items()]
    return "\n".join(["| column | type | content |", "|---|---|---|", *lines])


def http() -> str:
    """Return a section for each route of the server."""
    from fastapi import FastAPI

    from medclipsam.server.api.asgi import routers

    app = FastAPI()
    for router in routers(None):  # type: ignore[arg-type]
        app.include_router(router)
    parts = []
    for path, methods in sorted(app.openapi()["paths"].items()):
        parts += [_route(path, method.upper(), route) for method, route in methods.items()]
    return "\n".join(parts)


def setting_table(*groups: str) -> str:
    """Return the table of the settings of the server that are listed under some headings of its help."""
    rows = [
        (
            f"`{each.name}`",
            f"`{each.option.shown_default}`",
            _cell(each.option.range or each.option.more.get("allowed", each.option.kind)),
            _cell(each.option.about),
        )
        for each in SETTINGS.values()
        if each.group in groups
    ]
    return "\n".join(["| name | default | allowed | meaning |", "|---|---|---|---|", *(_row(row) for row in rows)])


def option_table(options: type[Options], names: Collection[str] = (), more: Mapping[str, str] | None = None) -> str:
    """Return the table of a set of options.

    Parameters
    ----------
    options : type of Options
        The set.
    names : collection of str
        Those that the table has; all where it is empty.
    more : mapping of str to str
        What is said of an option beside its description.
    """
    rows = [
        (
            f"`{each.name}`",
            f"`{each.shown_default}`",
            _cell(each.range or each.more.get("allowed", each.kind)),
            _cell(each.about + (more or {}).get(each.name, "")),
        )
        for each in options.options().values()
        if each.name in (names or options.options())
    ]
    return "\n".join(["| option | default | allowed | meaning |", "|---|---|---|---|", *(_row(row) for row in rows)])


def training_options() -> str:
    """Return the table of how a network is trained, with the values of the presets."""
    more: dict[str, str] = {}
    for name, each in TrainingOptions.options().items():
        values = {preset: chosen[name] for preset, chosen in PRESETS.items() if name in chosen}
        size = (lambda value: f"{value / 10**9:g} GB") if each.more.get("unit") == "bytes" else str
        if values:
            more[name] = f" ({', '.join(f'{preset} {size(value)}' for preset, value in values.items())})"
    return option_table(TrainingOptions, more=more)


def python() -> str:
    """Return the directives that describe the public names."""
    return "\n".join(f"::: medclipsam.{name}\n" for name in medclipsam.__all__ if not name.startswith("_"))


def packages() -> str:
    """Return the directives that describe what each package below the public names offers."""
    found = []
    for module in pkgutil.iter_modules(medclipsam.__path__):
        name = f"medclipsam.{module.name}"
        if module.ispkg and module.name not in ("demo", "server") and getattr(import_module(name), "__all__", None):
            found.append(
                f"## {name}\n\n::: {name}\n    options:\n      show_root_heading: false\n      heading_level: 3\n"
            )
    return "\n".join(found)


_PARTS: dict[str, Callable[[], str]] = {
    "settings of the server": lambda: setting_table(SERVER, MODELS, LIMITS, AUDIT, NETWORKS, ACCESS, OIDC),
    "settings of the DICOMweb server": lambda: setting_table(PACS),
    "settings of the rounds": lambda: setting_table(ROUNDS),
    "options of the pipeline": lambda: option_table(ZeroShotOptions),
    "options of a training": lambda: option_table(RunOptions),
    "options of the network": training_options,
    "options of fine-tuning": lambda: option_table(FinetuneOptions, SERVED_OPTIONS),
    "options of a prediction": lambda: option_table(NetworkOptions),
    "options of a cohort": lambda: option_table(CohortOptions),
    "columns of a cohort's table": cohort_columns,
    "command line": command_line,
    "http": http,
    "python": python,
    "packages": packages,
}


def _commands(parser: argparse.ArgumentParser, about: str) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """Yield each parser that has a command of its own, with its sentence."""
    children = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not children:
        yield parser, about
    for action in children:
        abouts = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, child in action.choices.items():
            yield from _commands(child, abouts.get(name, ""))


def _command(parser: argparse.ArgumentParser, about: str) -> str:
    lines = [f"## {parser.prog}", "", _sentence(parser.description or about), ""]
    formatter = parser._get_formatter()
    for group in parser._action_groups:
        rows = []
        for action in group._group_actions:
            if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
                continue
            rows.append((_flag(action), _cell(formatter._expand_help(action) if action.help else "")))
        if rows:
            title = {"positional arguments": "arguments"}.get(group.title or "", group.title or "").capitalize()
            head = [
                f"**{title}**",
                "",
                f"| {'argument' if title == 'Arguments' else 'option'} | meaning |",
                "|---|---|",
            ]
            lines += [*head, *(f"| {flag} | {text} |" for flag, text in rows), ""]
    return "\n".join(lines)


def _flag(action: argparse.Action) -> str:
    value = action.metavar or (None if action.nargs == 0 else action.dest.upper())
    if action.choices is not None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if not action.option_strings:
        return _code(str(action.metavar or action.dest))
    return _code(" ".join([", ".join(action.option_strings), *([str(value)] if value else [])]))


def _route(path: str, method: str, route: dict[str, Any]) -> str:
    lines = [f"## {method} `{path}`", "", _sentence(route.get("summary", "")), ""]
    if route.get("description"):
        lines += [route["description"], ""]
    rows = [
        (
            f"`{given['name']}`",
            given["in"],
            "yes" if given.get("required") else "no",
            _cell(given.get("description", "")),
        )
        for given in route.get("parameters", ())
    ]
    for kind in route.get("requestBody", {}).get("content", ()):
        rows.append((f"`{kind}`", "body", "yes" if route["requestBody"].get("required") else "no", ""))
    if rows:
        width = 4 if any(row[3] for row in rows) else 3
        head = ["parameter", "in", "required", "meaning"][:width]
        lines += [_row(head), "|" + "---|" * width, *(_row(row[:width]) for row in rows)]
    return "\n".join([*lines, ""])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") or not text else ".")


def _cell(text: str) -> str:
    return html.escape(" ".join(text.split()), quote=False).replace("|", "&#124;").replace("*", "&#42;")


def _code(text: str) -> str:
    return f"<code>{_cell(text)}</code>"
