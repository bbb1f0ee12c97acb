"""Do explanations point at the truth; `__main__` is the command line."""
