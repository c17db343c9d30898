"""What is decided: commands on runs and documents, carried out by one committer in groups.

Everything here is synchronous and runs in the committer's thread, but for `reading`, which reads what is committed.
"""
