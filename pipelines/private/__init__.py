"""As `numina.private`: the private names of the libraries that pipelines use, a module per library."""
