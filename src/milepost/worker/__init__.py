"""The worker: a supervisor and its executor processes, in which user code runs and a second thread talks to the server."""
