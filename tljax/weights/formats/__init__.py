"""One module for each format of files of weights, none of which runs anything that a file holds."""
