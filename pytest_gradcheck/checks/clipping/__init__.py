"""Does clipping do what it claims? A contract over generated gradients, judged in float64."""
