"""Whole-system Linux backups that never run as root, and that prove it."""

__version__ = "0.1.0"
