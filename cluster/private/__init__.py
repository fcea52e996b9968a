"""As `numina.private`: the private names of the libraries that the runtime uses, a module per library."""
