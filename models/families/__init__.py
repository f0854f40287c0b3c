"""What config.json means, a file for each family of architectures. No torch."""
