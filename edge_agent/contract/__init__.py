"""The contracts: everything that must be equal on both ends of a file or a message."""
