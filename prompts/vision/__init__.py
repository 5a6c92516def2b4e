"""Images on the side that API and worker share: what of a file is an image, how they are given, and models' folders."""
