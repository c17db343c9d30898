"""`schedules`, through the default client. Payloads are checked where the task is known in this process."""

from milepost.client.default import default_client
from milepost.client.schedules import Schedules
from milepost.sdk.triggering import encode_payload

schedules = Schedules(lambda: default_client().connection, encode_payload)
"""What is triggered at set times."""
