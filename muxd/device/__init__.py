"""The only rooms that know a driver: allocate, export, open, map memory."""
