"""Where the tests find things; `SHARED` may be absent, and tests that need it are skipped then."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "sami"
DOCS = ROOT / "docs"
SHARED = ROOT.parent / "shared"
