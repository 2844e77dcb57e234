"""The daemon that runs untrusted code in sandboxes. Start it with ``enclaved run``."""
