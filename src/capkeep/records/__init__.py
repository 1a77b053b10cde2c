"""What happened: store, query, judge fresh, late or failed."""
