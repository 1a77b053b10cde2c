"""Every effect on the machine: doors, bubblewrap, users, files."""
