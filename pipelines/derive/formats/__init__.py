"""The formats of exports: each one file, chosen by name."""
