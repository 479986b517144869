"""All results of a run as one value, and one renderer a file; a renderer reads values only."""
