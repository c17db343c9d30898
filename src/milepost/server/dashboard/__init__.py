"""The web pages: templates and plain JavaScript modules over the same HTTP API that everybody has."""
