"""Integrations beside the house: each an extra, and none loaded by the core until it is asked for."""
