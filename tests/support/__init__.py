"""Shared by the tests: benches, doubles and small models made on the spot."""
