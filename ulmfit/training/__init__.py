"""Both trainers and what they share. May import every other folder of the package."""
