"""Entry points: parse, configure, one pipeline call, exit status."""
