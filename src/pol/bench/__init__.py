"""The bench of attacks: every attack against every policy, and how often a sample would have met it."""
