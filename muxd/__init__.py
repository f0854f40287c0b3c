"""muxd: many LLMs on one host, one memory pool, one scheduler."""

__version__ = "0.2.0"
