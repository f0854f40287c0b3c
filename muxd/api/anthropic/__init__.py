"""Anthropic's Messages: /v1/messages."""
