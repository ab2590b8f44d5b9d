"""Hypothesis without deadlines: a busy machine is no defect of a rule."""

from hypothesis import settings

settings.register_profile("rules", deadline=None, max_examples=60)
settings.load_profile("rules")
