"""Helpers of the tests; `tests` is on the path, so they are imported as `support.<module>`."""
