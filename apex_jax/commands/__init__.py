"""The commands of the command line: `options`, and a module each, `main(config)`."""
