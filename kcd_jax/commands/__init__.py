"""The commands of `python -m kcd_jax`, one module each."""
