"""Models by name."""


def BTaggingModels(model, *args, **kwargs):
    if model == "Small":
        from utils.models.small import Small

        return Small(*args, **kwargs)
    raise NotImplementedError(f"there is no model {model}")
