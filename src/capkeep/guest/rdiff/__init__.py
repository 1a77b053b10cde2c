"""The half of an rdiff-backup that has the repository, run by the Python that rdiff-backup has."""
