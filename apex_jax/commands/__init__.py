"""The commands of the command line, a module each: `Config`, and `main(config)`."""
