"""Networks and the ways to fit them: in memory, from disk, on-line, over several machines."""
