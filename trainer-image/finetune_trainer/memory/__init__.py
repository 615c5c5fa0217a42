"""Will it fit: memory of one rank's step, and room on the disk, said before anything is held."""
