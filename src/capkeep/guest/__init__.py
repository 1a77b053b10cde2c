"""Programs of ours that run inside an engine's own Python, whatever version that is.

Each is one file, started by its path, or one folder; it imports the engine's modules, and nothing of
capkeep's from outside of here.
"""
