"""How many examples hypothesis tries, where a test does not say so itself: `HYPOTHESIS_PROFILE=soak pytest ...` for many."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile("quick", max_examples=15, deadline=None)
# What takes too long to draw is a matter of the machine, not of the code.
settings.register_profile("soak", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
