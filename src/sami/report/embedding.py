"""Put text from models into a page so that it cannot end an element, run, or reorder the words around it."""

import base64
import gzip
import json
import re
from typing import Any

from markupsafe import Markup

# Control characters, bidirectional overrides and isolates, and lone surrogates.
_UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def packed(value: Any) -> str:
    """A value as gzipped JSON in base64, which is safe anywhere in a page and a fifth of the size.

    The page unpacks it with DecompressionStream, which browsers have had since 2023.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII, so lone surrogates are kept
    return base64.b64encode(gzip.compress(text.encode("ascii"), mtime=0)).decode("ascii")


def visible(value: Any) -> Any:
    """For Jinja's `finalize`: text with invisible characters spelled out; markup and other values unchanged."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _UNSEEN.sub(lambda match: f"⟨U+{ord(match.group()):04X}⟩", value)
    return value
