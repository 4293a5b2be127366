"""Tables that people have already: plain ones become partitioned, and plain again."""

from .converting import ConversionPlan, abort_conversion, convert, plan_convert

__all__ = ["ConversionPlan", "abort_conversion", "convert", "plan_convert"]
