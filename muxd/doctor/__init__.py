"""`muxd doctor`: what this host can do for muxd, what is missing, and what to do about it."""
