"""The guest: PID 1 of a sandbox, which starts processes for the daemon and keeps what they write.

Standard library only, Python 3.8 or newer: it meets the image's Python, not ours. docs/guest-protocol.md describes the
frames. A sandbox gets all modules in one file (see `enclaved.agent.install` and `loader`). Three programs are made of
them (see `main`):

* the guest proper, PID 1 and root: a single-threaded event loop, put together in `guest`. It runs no user code and
  parses only length-checked frames.
* the template (`template`): a clean interpreter that forks *standby* children ahead of demand. It never sees a job.
* a standby child (`child`): waits for one job. What it says is a claim of user code; exit status and resource use come
  from ``wait4`` in the guest.

The daemon imports `frames`, `journal`, `limits` and `resync`, nothing else.
"""
