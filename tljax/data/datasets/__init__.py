"""TFDS builders of data sets that are not in TFDS."""
