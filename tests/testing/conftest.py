"""The plugin's fixtures, also where the package was installed before it had a plugin."""

from milepost_pytest import milepost_context, milepost_dev_server, milepost_sandbox

__all__ = ["milepost_context", "milepost_dev_server", "milepost_sandbox"]
