"""An IoT fleet's event sourcing in miniature: one table, a partition for each UTC day, and its run-book."""
