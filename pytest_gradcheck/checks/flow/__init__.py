"""Does the gradient reach every layer? From passes over initialisations to a verdict."""
