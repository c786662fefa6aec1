"""The steps of a run, and what a run leaves on disk."""
