"""`sami write-principles`: principles that a model writes, into a file or on standard output."""

from pathlib import Path

from sami.principle_writing import files
from sami.recipe import WrittenPrinciples


def write_principles(settings: WrittenPrinciples, output: Path | None) -> None:
    """Have principles written and print the path of the file, or without one their text."""
    if output is None:
        print(files.written(settings), end="")
    else:
        files.write_file(settings, output)
        print(output)
