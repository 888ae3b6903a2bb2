"""The model that comes with botwatch, and the rows of generated homes that it is fitted on."""
