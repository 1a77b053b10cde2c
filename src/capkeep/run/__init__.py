"""Walk a job through its rooms; time limits, outcome."""
