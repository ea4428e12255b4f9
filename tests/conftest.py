"""Of every test: no deadline for an example of Hypothesis. How long one takes says how busy the machine is."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
