"""Ways to a daemon: one Protocol, one implementation for each wire."""
