"""Networks that APEX explains, one file each."""
