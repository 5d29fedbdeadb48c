from hypothesis import settings

# How long an example takes says more about the machine than about the code.
settings.register_profile("no deadline", settings.get_profile(settings.get_current_profile_name()), deadline=None)
settings.load_profile("no deadline")
