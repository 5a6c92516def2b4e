"""Tasks of images on the library of ``encoders``: a folder each."""
