"""OpenAI's Responses, without state: /v1/responses."""
