"""Training of both tasks, and the parts that they share. May import every other folder of the package."""
