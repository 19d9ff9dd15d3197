"""Many hosts as one: cells of chips that hold the weights once, and hosts that wait for each other by name."""
