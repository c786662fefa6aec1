"""The page on the Python API lists the public names of the package, and each can be imported from it."""

import re

import pytest

import sami
from tests.support.places import DOCS

LISTED = re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", LISTED)
def test_a_listed_name_is_imported_from_sami(name):
    package, _, attribute = name.rpartition(".")
    assert package == "sami"
    assert getattr(sami, attribute).__doc__


def test_every_public_name_is_listed():
    assert sorted(name.removeprefix("sami.") for name in LISTED) == sorted(sami.__all__)
