"""Of all tests: Ctrl-C works, and hypothesis tries few examples; `HYPOTHESIS_PROFILE=soak pytest ...` tries many."""

import os
import signal

from hypothesis import HealthCheck, settings

# A shell that starts this in the background lets it ignore Ctrl-C, and processes inherit that: tests that send it to one would
# wait for ever.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("quick", max_examples=15, deadline=None)
# What takes too long to draw is a matter of the machine, not of the code.
settings.register_profile("soak", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
