"""BirdSet, birds in soundscapes; `__main__` is the experiment's command line."""
