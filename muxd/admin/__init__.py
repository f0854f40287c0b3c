"""The local door: a Unix socket for muxctl."""
