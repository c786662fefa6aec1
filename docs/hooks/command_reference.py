"""An MkDocs hook that generates the page `commands.md` from the commands themselves."""

import re
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from sami.cli import app

INTRODUCTION = """# Commands

This page lists every command with its arguments and options, as `sami COMMAND --help` does.
Results go to standard output, and progress and warnings to standard error. The exit code is 0 on success and 2 for
errors that you can fix ([Troubleshooting](troubleshooting.md)).
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, "commands.md", content=page()))
    return files


def page() -> str:
    """The whole page in Markdown."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return "\n".join([INTRODUCTION, *(_section(name, command) for name, command in commands.items())])


def _section(name: str, command: Any) -> str:
    arguments = [_named(one) for one in command.params if one.param_type_name == "argument"]
    usage = " ".join([f"sami {name}", *arguments, "[OPTIONS]"])
    rows = [
        f"| `{_named(one)}`{{ .key }} | {_cell(_plain(one.help or '') + _default(one))} |" for one in command.params
    ]
    table = ["| argument or option | meaning |", "|---|---|", *rows, ""] if rows else []
    example = _plain(command.epilog or "")
    parts = [f"## sami {name}", "", _plain(command.help or ""), "", "```text", usage, "```", "", *table]
    return "\n".join([*parts, example.replace("Example: ", "Example: `") + "`" if example else "", ""])


def _named(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    return ", ".join([*parameter.opts, *parameter.secondary_opts])


def _default(parameter: Any) -> str:
    shown = parameter.param_type_name == "option" and parameter.default not in (None, False, [], ())
    return f" Default: `{parameter.default}`." if shown else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _plain(text: str) -> str:
    """The text without Rich markup, with one line per paragraph."""
    text = re.sub(r"\[/?bold\]", "**", text)
    paragraphs = [" ".join(part.split()) for part in text.replace("\b", "").split("\n\n")]
    return "\n\n".join(paragraphs)
