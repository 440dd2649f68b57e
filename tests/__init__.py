"""The tests; `python -m tests` runs everything a change must pass."""
