"""A record for people and machines."""
