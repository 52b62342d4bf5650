"""From files to batches: sources, decoding, views, splits, streams."""
