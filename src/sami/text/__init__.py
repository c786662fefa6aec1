"""Text alone: words, degeneration, leaks of a constitution, and deterministic checks."""
