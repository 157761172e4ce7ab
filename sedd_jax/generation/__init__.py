"""Text from trained models: model objects, templates, sample files and replays."""
