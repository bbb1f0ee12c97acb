"""APEX on WaveFake, real speech against vocoders; `__main__` is its command line."""
