"""Text from trained models: models in one object, templates, files of samples, replays."""
