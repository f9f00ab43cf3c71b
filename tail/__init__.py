"""The server: store, batcher, service, server."""
