"""Benchmarks: suites of environments, run over seeds beside peers of other libraries, and summed up."""
