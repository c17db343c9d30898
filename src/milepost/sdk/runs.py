"""`runs`, through the default client."""

from milepost.client.default import default_client
from milepost.client.runs import Runs
from milepost.sdk.calling import know_runs

runs = Runs(lambda: default_client().connection)
"""Reading and watching runs."""

know_runs()
