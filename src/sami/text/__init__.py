"""Text alone: words, languages, loops and leftovers, leaks of a constitution, and deterministic checks."""
