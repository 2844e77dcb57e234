"""Tools: pure functions from parameters to jobs for the guest."""
