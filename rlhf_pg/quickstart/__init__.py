"""The embedded world of the quickstart: a review grammar, its tiny model, its reward model and its gold score."""
