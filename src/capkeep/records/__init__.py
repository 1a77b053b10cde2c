"""What happened: store, query, judge."""
