"""A hook of mkdocs: the page `commands.md`, made at build time from the commands themselves."""

import re

import click
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from sami.cli import app

INTRODUCTION = """# Commands

Every command with its arguments and options, as `sami COMMAND --help` shows them.
Results go to standard output, progress and warnings to standard error. The exit code is 0 on success and 2 for
anything that you can mend ([troubleshooting.md](troubleshooting.md)).
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, "commands.md", content=page()))
    return files


def page() -> str:
    """The whole page in Markdown."""
    group = typer.main.get_command(app)
    commands: dict[str, click.Command] = group.commands  # type: ignore[attr-defined]
    return "\n".join([INTRODUCTION, *(_section(name, command) for name, command in commands.items())])


def _section(name: str, command: click.Command) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    usage = " ".join([f"sami {name}", "[OPTIONS]", *(str(one.make_metavar(click.Context(command))) for one in arguments)])
    lines = [f"## sami {name}", "", _plain(command.help or ""), "", "```text", usage, "```", ""]
    if command.params:
        lines += ["| argument or option | meaning |", "|---|---|"]
    for one in command.params:
        is_option = one.param_type_name == "option"
        names = ", ".join([*one.opts, *one.secondary_opts]) if is_option else str(one.make_metavar(click.Context(command)))
        default = one.default if is_option and not callable(one.default) else None
        shown = f" Default: {default}." if default not in (None, False, (), []) else ""
        meaning = _plain(getattr(one, "help", None) or "") + shown
        lines.append(f"| `{names}` | {meaning.replace('|', chr(92) + '|')} |")
    example = _plain(command.epilog or "")
    return "\n".join([*lines, "", example, ""])


def _plain(text: str) -> str:
    """Without rich's markup, and as one paragraph for each that was written."""
    text = re.sub(r"\[/?bold\]", "**", text)
    paragraphs = [" ".join(part.split()) for part in text.replace("\b", "").split("\n\n")]
    return "\n\n".join(paragraphs)
