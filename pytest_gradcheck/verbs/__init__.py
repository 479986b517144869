"""The public verbs as plain functions, one file a verb; ``record.py`` is what they share.

They work anywhere: in a pytest test, in a ``unittest`` or absltest class that pytest runs, and in
a script without pytest (with the default limits, recorded nowhere).
"""
