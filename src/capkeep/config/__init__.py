"""TOML to a frozen model; every error knows its line."""
