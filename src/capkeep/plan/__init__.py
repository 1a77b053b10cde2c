"""Model to jobs, rooms and grants; pure."""
