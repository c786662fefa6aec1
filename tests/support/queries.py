"""Files of queries, and records as known data sets have them."""

import json
from pathlib import Path
from typing import Any

import pytest

from sami.errors import InputError
from sami.queries import LoadedQueries, load_queries


def lines(*records: object) -> str:
    """Records as JSON lines."""
    return "".join(json.dumps(record) + "\n" for record in records)


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def texts(loaded: LoadedQueries) -> list[str]:
    return [query.text for query in loaded.queries]


def refusal(path: str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_queries(path, **options)
    return str(caught.value)


def turns(*spoken: str) -> str:
    """A transcript as HH-RLHF has it, the human first."""
    speakers = ("Human", "Assistant")
    return "".join(f"\n\n{speakers[number % 2]}: {text}" for number, text in enumerate(spoken))


def pair(chosen: str, rejected: str | None = None) -> dict[str, str]:
    return {"chosen": chosen, "rejected": chosen if rejected is None else rejected}


def comparison(identifier: str, post: str | None, **others: Any) -> dict[str, Any]:
    """A record of summarize_from_feedback's comparisons."""
    info = {"id": identifier, "post": post, "title": "Tea", "subreddit": "tea", "site": None, "article": None}
    summaries = [{"text": " Short.", "policy": "sup1", "note": None}, {"text": " Long.", "policy": "ref", "note": "x"}]
    return {"info": info | others, "summaries": summaries, "choice": 0, "split": "train", "extra": {"confidence": 4}}
