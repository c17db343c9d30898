"""Upkeep: named jobs in small batches, each done by one server at a time."""
