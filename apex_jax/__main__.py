"""`python -m apex_jax` is the console script `apex-jax`."""

import sys

from apex_jax import cli

if __name__ == "__main__":
    sys.exit(cli.main())
