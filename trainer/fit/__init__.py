"""Networks and how they are fitted: in memory, from disk, on-line, over several machines."""
