"""The OpenAI-compatible HTTP door: parses, checks, tokenises, streams. It schedules nothing."""
