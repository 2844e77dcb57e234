"""Use cases of the daemon: plain asyncio, no gRPC, no HTTP, no Docker."""
