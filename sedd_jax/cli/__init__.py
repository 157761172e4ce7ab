"""The command line: one thin main per verb. Only this package imports absl and ml_collections."""
