"""One folder a defence that trains, named as on the command line; each holds the code and its card."""
