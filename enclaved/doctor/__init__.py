"""Looks at a host, and lets hostile programs loose in sandboxes on it, to show what holds."""
