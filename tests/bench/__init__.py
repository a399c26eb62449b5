"""How fast it is, measured: `make bench` prints a table and writes `tests/bench/result.json`.

Nothing here is shipped, and no test asserts a time. Whatever is compared runs in turn, round after
round (E0, E1, ours, E0, E1, ours, ...), so that a machine that is busy for a while is so for all.
"""
