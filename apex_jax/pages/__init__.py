"""What the report is made of; `apex_jax.report` is its front door."""
