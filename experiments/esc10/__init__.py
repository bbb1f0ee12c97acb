"""ESC-10, ten environmental sounds in five folds; `__main__` is its command line."""
