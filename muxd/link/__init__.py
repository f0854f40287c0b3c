"""The wire between daemon and workers: ZeroMQ messages and passed file descriptors."""
