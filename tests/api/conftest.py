"""Hypothesis: the same cases in every run, and no deadline on a machine that is busy."""

from hypothesis import settings

settings.register_profile("api", deadline=None, derandomize=True)
settings.load_profile("api")
