"""What each endpoint does, by topic: from a checked request to a command or a reading, and back to a message. No decisions here."""
