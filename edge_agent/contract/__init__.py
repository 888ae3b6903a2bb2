"""What must be equal on both ends of a file or a message."""
