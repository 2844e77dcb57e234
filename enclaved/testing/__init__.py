"""For our own tests and for authors of plug-ins: a runtime without Docker, and the contracts."""
