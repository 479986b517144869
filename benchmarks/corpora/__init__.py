"""Functions with true derivatives, and the ways in which these are made wrong."""
