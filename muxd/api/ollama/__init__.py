"""Ollama's API: /api/..."""
