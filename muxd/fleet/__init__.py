"""Which workers live: their states (pure) and the supervisor that spawns them."""
