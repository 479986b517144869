"""Mathematics on numbers and small arrays; knows no framework and no pytest."""
