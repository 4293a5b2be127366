"""Alerts: told once however many processes look, again while it stands, and once when it is over.

``incidents`` decides and is pure, ``stores`` remembers for all processes, ``notifiers`` sends.
"""

from .alerting import Alerts, Sent

__all__ = ["Alerts", "Sent"]
