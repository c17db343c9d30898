"""Background tasks for Python whose runs carry live metadata."""
