"""A Docker-first odds service in miniature: replicas that migrate themselves, one scheduler, one Redis."""
