"""`sami import-principles`: a principles file from the constitutions of the reference implementation."""

from collections.abc import Sequence
from pathlib import Path

from sami.reference_format import opposed, read_constitutions, write_principles


def import_principles(sources: Sequence[Path], output: Path) -> None:
    """Write the principles file of some constitutions, and print its path."""
    write_principles(opposed(read_constitutions(sources)), output)
    print(output)
