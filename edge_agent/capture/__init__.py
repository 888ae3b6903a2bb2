"""The agent's input: sources of packets, and the rows of statistics that the kernel makes of them."""
