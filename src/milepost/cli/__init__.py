"""The command line: the one place that puts both halves together."""
