"""summary.json as types: what is read is written again unchanged, and the schema is the models'."""

import json
from importlib.resources import files
from typing import Any

import pytest
from pydantic import ValidationError

from sami.loop.results import Summary

Json = dict[str, Any]


@pytest.fixture
def value(report_run) -> Json:
    stored = json.loads((report_run / "summary.json").read_text(encoding="utf-8"))
    return stored


def test_the_packaged_schema_is_the_models_schema():
    stored = files("sami.loop").joinpath("summary.schema.json").read_text(encoding="utf-8")
    assert json.loads(stored) == Summary.model_json_schema(), "python -m sami.loop.results writes the schema"


def test_a_summary_is_written_as_it_was_read(report_run):
    text = (report_run / "summary.json").read_text(encoding="utf-8")
    read = Summary.read(report_run / "summary.json")
    assert json.dumps(read.as_json(), indent=1, ensure_ascii=False) == text


@pytest.mark.parametrize(
    "key", ["agreement", "judges", "shared_prefix", "training", "verdict", "versions", "win_rates"]
)
def test_a_summary_without_a_newer_key_loads_and_stays_without_it(value, key):
    del value[key]
    assert Summary.model_validate(value).as_json() == value


def test_keys_of_a_newer_version_are_kept(value):
    value["policies"][0]["health"]["invented"] = value["invented"] = {"later": [1, None]}
    assert Summary.model_validate(value).as_json() == value


def test_half_a_surrogate_pair_in_a_models_words_is_kept(value):
    value["policies"][1]["health"]["opening"] = "half \ud800"
    assert Summary.model_validate(value).policies[1].health.opening == "half \ud800"


@pytest.mark.parametrize("wrong", [{}, {"policies": [{"name": "base"}]}, {"policies": [], "verdict": 3}])
def test_what_is_not_a_summary_is_refused(wrong):
    with pytest.raises(ValidationError):
        Summary.model_validate(wrong)
