"""The guest in the sandbox and the daemon's side of the conversation with it."""
