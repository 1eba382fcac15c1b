"""The tfds builders, one file per data set, and the archives that they read."""
