"""The only room that talks to a Docker engine."""
