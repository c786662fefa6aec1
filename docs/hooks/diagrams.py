"""An MkDocs hook that inlines diagrams into the page, so that their colors follow the reader's theme."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

IMAGE = re.compile(r"^!\[(?P<alt>[^\]]*)\]\((?P<file>diagrams/[a-z-]+\.svg)\)$", re.MULTILINE)
STYLE = re.compile(r"\s*<style>.*?</style>", re.DOTALL)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    def inline(match: re.Match[str]) -> str:
        drawing = (Path(config.docs_dir) / match["file"]).read_text(encoding="utf-8")
        # The drawing's own style is for viewers of the file alone; `currentColor` then takes the color of the page.
        return f'<div class="diagram">\n{STYLE.sub("", drawing).strip()}\n</div>'

    return IMAGE.sub(inline, markdown)
