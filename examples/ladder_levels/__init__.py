"""A betting-exchange stream recorder in miniature: one table, a partition for each UTC day, two roles."""
