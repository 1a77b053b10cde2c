"""One file per group of verbs; composition of the rest."""
