"""Runs over the managed tables: each table with a result of its own, one bad table stopping no other."""

from .ensuring import ensure, plan, with_free_names
from .repairing import Progress, RepairPlan, plan_repair, repair
from .reports import Report, TablePlan, TableResult
from .settings import (
    NOW_VARIABLE,
    SCHEMA_OPTION,
    SCHEMA_VARIABLE,
    clock,
    config_home,
    config_schema,
    parse_instant,
)

__all__ = [
    "NOW_VARIABLE",
    "SCHEMA_OPTION",
    "SCHEMA_VARIABLE",
    "Progress",
    "RepairPlan",
    "Report",
    "TablePlan",
    "TableResult",
    "clock",
    "config_home",
    "config_schema",
    "ensure",
    "parse_instant",
    "plan",
    "plan_repair",
    "repair",
    "with_free_names",
]
