"""One file a verb: ask a backend, call numerics, judge against limits, return a result."""
