"""Runs over the managed tables: each table with a result of its own, one bad table stopping no other."""

from .creating import (
    Ahead,
    check_usable,
    make_ahead,
    plan_ahead,
)
from .ensuring import (
    ensure,
    plan,
    with_free_names,
)
from .history import (
    Standing,
    record,
    standing,
)
from .indexing import (
    create_index,
    drop_index,
)
from .looking import (
    TableView,
    View,
    look,
    past_runs,
)
from .maintaining import (
    Orders,
    maintain,
    plan_maintain,
)
from .repair_plans import (
    RepairPlan,
)
from .repairing import (
    Progress,
    plan_repair,
    repair,
)
from .reports import (
    Report,
    TablePlan,
    TableResult,
)
from .restoring import (
    plan_restoring,
    restore,
)
from .settings import (
    NOW_VARIABLE,
    SCHEMA_OPTION,
    SCHEMA_VARIABLE,
    clock,
    config_home,
    config_schema,
    parse_instant,
    rehearsed,
)
from .space import lacking_room
from .splitting import SplitPlan, abort_split, plan_split, split
from .tending import plan_tending, tend

__all__ = [
    "NOW_VARIABLE",
    "SCHEMA_OPTION",
    "SCHEMA_VARIABLE",
    "Ahead",
    "Orders",
    "Progress",
    "RepairPlan",
    "Report",
    "SplitPlan",
    "Standing",
    "TablePlan",
    "TableResult",
    "TableView",
    "View",
    "abort_split",
    "check_usable",
    "clock",
    "config_home",
    "config_schema",
    "create_index",
    "drop_index",
    "ensure",
    "lacking_room",
    "look",
    "maintain",
    "make_ahead",
    "parse_instant",
    "past_runs",
    "plan",
    "plan_ahead",
    "plan_maintain",
    "plan_repair",
    "plan_restoring",
    "plan_split",
    "plan_tending",
    "record",
    "rehearsed",
    "repair",
    "restore",
    "split",
    "standing",
    "tend",
    "with_free_names",
]
