"""The two programs: muxd and muxctl."""
