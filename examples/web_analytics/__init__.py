"""A web-analytics service in miniature: two tables by month, and the people who operate them."""
