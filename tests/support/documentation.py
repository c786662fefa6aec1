"""The documentation as data: links, fenced blocks, the commands in them, and notes on why a block is not run.

A note is an HTML comment on the line above a fence, which readers of the page do not see:

    <!-- not run: needs eight GPUs -->     the block's commands are parsed but not run
    <!-- may exit 2: a random judge -->    they are run and may be refused
"""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from tests.support.places import DOCS, ROOT

PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]

FENCE = re.compile(
    r"(?:^<!-- (?P<note>not run|may exit 2): (?P<reason>[^\n]+?) -->\n)?"
    r"^```(?P<language>[a-z]*)[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
PROGRAMS = ("sami", "make", "pip", "python", "python3.11", "export", "sbatch", "transformers", "torchrun", "hf")


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    text: str
    note: str | None

    @property
    def where(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def is_commands(self) -> bool:
        """Whether the block is marked as shell code, or is unmarked and starts with a program."""
        if self.language:
            return self.language in ("bash", "console", "sh", "shell")
        return bool(self.commands) and Path(self.commands[0][0]).name in PROGRAMS

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command, without comments; a backslash continues a line.

        If lines start with a prompt, "$ ", the other lines are output.
        """
        lines = self.text.replace("\\\n", " ").splitlines()
        lines = [line for line in lines if line.startswith("$ ")] or lines
        try:
            return [words for line in lines if (words := shlex.split(line.removeprefix("$ "), comments=True))]
        except ValueError:  # an unbalanced quote: prose or output
            return []


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, match.start("text")), match["language"], match["text"], match["note"])
        for match in FENCE.finditer(text)
    ]


def prose(page: Path) -> str:
    """The page without its blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def inline(page: Path) -> list[str]:
    """The text of each single-backtick span."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(page))


def links(page: Path) -> list[str]:
    """The targets of the page's links and images that are not URLs."""
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in link]


def anchors(page: Path) -> set[str]:
    """The anchors of the page's headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
