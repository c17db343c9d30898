"""What is announced: who watches what, and what they are sent. Lives in the server's event loop.

Announcements are hints and the store is the truth: a subscriber registers first and reads the present state then, so that
nothing falls in between; a gap in versions is healed by a snapshot.
"""
