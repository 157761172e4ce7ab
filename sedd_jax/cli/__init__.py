"""The command line: one thin main per verb. The only floor that knows absl and ml_collections."""
