"""Keeps garbage collection cheap: a run collects a dozen times, and the imported libraries have millions of objects."""

import gc


def freeze_libraries() -> None:
    """Exclude everything that is alive now from later collections."""
    gc.collect()
    gc.freeze()
