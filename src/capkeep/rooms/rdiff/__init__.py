"""The half of an rdiff-backup that sees the files: a reader's, a restorer's, or of whoever only looks."""
