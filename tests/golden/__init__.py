"""References of other projects on small random models, and the scripts that record them."""
