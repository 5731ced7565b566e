"""``python -m tests.bench NAME``: what is fast, against what, on this machine."""
