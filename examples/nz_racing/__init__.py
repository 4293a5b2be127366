"""A New Zealand racing back end in miniature: meetings, races, entrants, and three histories by the day."""
