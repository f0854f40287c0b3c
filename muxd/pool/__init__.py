"""Who holds which head block: the ledger (pure) and the arena that binds it to device memory."""
