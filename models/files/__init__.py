"""What lies on disk: our checkpoints, and the adapter files of other libraries and of the authors' releases."""
