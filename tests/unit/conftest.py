"""How long property tests search: a little by default, long in tests marked `full`."""

from hypothesis import settings

settings.register_profile("quick", max_examples=40, deadline=None)
settings.load_profile("quick")
