"""What is kept: tables, and the verbs on them, written once in SQLAlchemy Core for every database.

Statements only: what may happen is decided in `engine`. Times are integers, microseconds since 1970, and always parameters.
"""
