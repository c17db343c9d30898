"""Reading what is committed, for whoever watches or asks: pure functions of a connection, split by topic, and `Reader` before them.

It stands beside the engine: both know the store, and neither knows the other.
"""
