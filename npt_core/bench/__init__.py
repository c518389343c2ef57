"""How fast the engine is, beside what else could serve the same weights.

Nothing is imported here: `startup` is timed in a process of its own and must not load the rest.
"""
