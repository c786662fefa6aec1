"""Text from models inside a page: nothing of it can end an element, run, or reorder the words around it."""

import base64
import gzip
import json
import re
from typing import Any

from markupsafe import Markup

# Control characters, bidirectional overrides and isolates, and halves of surrogate pairs.
_UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def packed(value: Any) -> str:
    """JSON, gzipped, in base64: safe in any place of a page, and a fifth of the size.

    The page unpacks it with DecompressionStream, which browsers have since 2023.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII, so halves of pairs pass through
    return base64.b64encode(gzip.compress(text.encode("ascii"), mtime=0)).decode("ascii")


def visible(value: Any) -> Any:
    """Text whose unseen characters are spelled out, for Jinja's `finalize`; markup and other values as they are."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _UNSEEN.sub(lambda match: f"⟨U+{ord(match.group()):04X}⟩", value)
    return value
