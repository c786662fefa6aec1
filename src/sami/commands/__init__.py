"""What the commands do, one module for each; `sami.cli` parses their options and calls them."""
