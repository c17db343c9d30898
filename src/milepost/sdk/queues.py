"""`queues`, through the default client."""

from milepost.client.default import default_client
from milepost.client.queues import Queues

queues = Queues(lambda: default_client().connection)
"""Looking at queues, pausing them, and changing their limits."""
