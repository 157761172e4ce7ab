"""Files: writing them whole or not at all, locks, manifests, files of lines that grow."""
