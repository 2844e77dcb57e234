"""Ways to a daemon: one Protocol, one implementation for each wire."""

import os

# gRPC reads this when it is loaded. Its own support for forks would start its threads again in a child that was forked
# while calls were under way, and such a child crashes at random; see ``channels.py`` for what is done instead.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
