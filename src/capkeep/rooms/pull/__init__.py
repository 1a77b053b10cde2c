"""What a puller and an answerer have in common: one connection that carries a reader's whole life."""
