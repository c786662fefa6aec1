"""What the commands do, one module a command; `sami.cli` parses and calls."""
