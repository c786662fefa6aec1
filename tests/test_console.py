"""What data can do to a terminal, and what a terminal without UTF-8 shows."""

import io
import json
import os
import subprocess
import sys

import pytest
from rich.table import Table

from sami.console import PlainConsole, bar, say, show, visible

HOSTILE = "[/red] [bold]x[/bold] :smile: \x1b[2J \u202egnp.exe"
SHOWN = r"[/red] [bold]x[/bold] :smile: \x1b[2J \u202egnp.exe"


def test_data_is_printed_as_it_is_in_text_and_in_tables(capsys):
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    show(table)
    show(HOSTILE)
    say(HOSTILE)
    printed = capsys.readouterr()
    assert printed.out.count(SHOWN) == 4
    assert printed.err.count(SHOWN) == 1
    assert "\x1b" not in printed.out + printed.err


def test_a_progress_bar_shows_its_label_as_it_is(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = PlainConsole(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr("sami.console.console", terminal)
    with bar("judging by [/red]\x1b[2J", 2, "pairs") as update:
        update(1)
    shown = terminal.file.getvalue()
    assert r"judging by [/red]\x1b[2J" in shown
    assert "\x1b[2J" not in shown


def test_newlines_and_joined_emoji_stay_visible_text():
    assert visible("a\nb\tc 👩\u200d🔬 \u2028") == "a\nb    c 👩\u200d🔬 \\u2028"


@pytest.mark.parametrize(
    ("encoding", "name"), [("ascii", 'Zoe 5 x 3 - "so"... \\u4e2d'), ("latin-1", 'Zoë 5 × 3 - "so"... \\u4e2d')]
)
def test_a_terminal_without_utf_8_gets_readable_text_and_exact_json(encoding, name):
    code = """if True:
        from rich.table import Table
        from sami.console import make_output_readable, say, show, show_json
        make_output_readable()
        name = "Zoë 5 × 3 – “so”… 中"
        table = Table(title=name)
        table.add_row("▸" + 60 * "x")
        show(table), show(name), say(name), show_json(name)
    """
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert done.returncode == 0, err
    *table, text, printed = out.splitlines()
    assert table[0].strip() == text.strip() == err.strip() == name
    assert ">" in "".join(table)
    assert json.loads(printed) == "Zoë 5 × 3 – “so”… 中"
