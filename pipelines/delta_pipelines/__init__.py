"""The jobs that join the networks and the cache, and the `delta` command that starts them."""
