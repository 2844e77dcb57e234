"""What makes a host fit for sandboxes: checks of the engine, the kernel and the daemon's own files and listeners."""
