"""The tfds builders, one data set a file, and what they read and write."""
