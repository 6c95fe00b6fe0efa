"""The world that trains: recipes, runs, state, and the one engine that drives a training program."""
