"""`sedd sweep`, from a checkout."""

from sedd_jax.cli.sweep import run

if __name__ == "__main__":
  run()
