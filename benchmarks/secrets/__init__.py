"""How well the recognisers find secrets: texts that are composed by seed, and the files of installed packages."""
