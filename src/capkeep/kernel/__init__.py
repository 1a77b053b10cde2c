"""What the kernel offers and says: processes, mounts, seccomp, Landlock, /proc."""
