"""What a durable job is, and where it is kept."""
