"""From somebody else's file to a model folder: GGUF import and the demo models."""
