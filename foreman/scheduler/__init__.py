"""Who goes next: model keys, lines, the pure policy, the lanes' shares, and the turn."""
