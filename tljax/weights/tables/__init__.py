"""One table per published layout."""
