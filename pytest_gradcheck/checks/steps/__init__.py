"""Does a training step use the right gradient, move the right parameters, and lower the loss?"""
