"""What a batch costs in seconds, from a measured profile or from a roofline."""
