"""Which models share which GPUs: the plan, before anything runs. Pure."""
