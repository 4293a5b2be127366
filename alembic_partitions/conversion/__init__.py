"""Tables that people have already: plain ones become partitioned, and plain again."""

from .converting import abort_conversion, convert, plan_convert
from .reading import ConversionPlan
from .reverting import abort_unpartition, plan_unpartition, unpartition

__all__ = [
    "ConversionPlan",
    "abort_conversion",
    "abort_unpartition",
    "convert",
    "plan_convert",
    "plan_unpartition",
    "unpartition",
]
