"""argv out, machine output in, one file per engine; pure; one contract."""
