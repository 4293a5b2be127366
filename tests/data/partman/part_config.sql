-- Six tables as pg_partman 4.7.2 (Debian's, PostgreSQL 15) made them, each in the file of its name, and what it
-- noted down of them, here. Recorded from `pg_dump --schema-only` and `--inserts` under TimeZone UTC, and made
-- shorter: a partition is one line, which PARTITION OF makes as pg_partman does; without template tables,
-- pg_partman's functions and its CHECK constraints. The server's clock was set (by faketime) to 2025-10-26 02:30
-- UTC when hourly_berlin was made, to 2026-03-26 12:00 when the others were, and to 2026-04-05 01:00 when
-- partman.run_maintenance() extended all but hourly_berlin from a session in UTC.
CREATE SCHEMA partman;
CREATE TABLE partman.part_config (
    parent_table text NOT NULL,
    control text NOT NULL,
    partition_type text NOT NULL,
    partition_interval text NOT NULL,
    constraint_cols text[],
    premake integer NOT NULL,
    optimize_trigger integer NOT NULL,
    optimize_constraint integer NOT NULL,
    epoch text NOT NULL,
    inherit_fk boolean NOT NULL,
    retention text,
    retention_schema text,
    retention_keep_table boolean NOT NULL,
    retention_keep_index boolean NOT NULL,
    infinite_time_partitions boolean NOT NULL,
    datetime_string text,
    automatic_maintenance text NOT NULL,
    jobmon boolean NOT NULL,
    sub_partition_set_full boolean NOT NULL,
    undo_in_progress boolean NOT NULL,
    trigger_exception_handling boolean,
    upsert text NOT NULL,
    trigger_return_null boolean NOT NULL,
    template_table text,
    publications text[],
    inherit_privileges boolean,
    constraint_valid boolean NOT NULL,
    subscription_refresh text,
    drop_cascade_fk boolean NOT NULL,
    ignore_default_data boolean NOT NULL
);
INSERT INTO partman.part_config VALUES ('public.hourly_berlin', 'at', 'native', '01:00:00', NULL, 4, 4, 30, 'none', true, NULL, NULL, true, true, true, 'YYYY_MM_DD_HH24MI', 'off', true, false, false, false, '', true, 'partman.template_public_hourly_berlin', NULL, false, true, NULL, false, false);
INSERT INTO partman.part_config VALUES ('public.weekly', 'day', 'native', '7 days', NULL, 4, 4, 30, 'none', true, NULL, NULL, true, true, true, 'IYYY"w"IW', 'on', true, false, false, false, '', true, 'partman.template_public_weekly', NULL, false, true, NULL, false, false);
INSERT INTO partman.part_config VALUES ('public.drifted', 'at', 'native', '1 day', NULL, 1, 4, 30, 'none', true, NULL, NULL, true, true, true, 'YYYY_MM_DD', 'on', true, false, false, false, '', true, 'partman.template_public_drifted', NULL, false, true, NULL, false, false);
INSERT INTO partman.part_config VALUES ('public.epochs', 'at_s', 'native', '1 day', NULL, 3, 4, 30, 'seconds', true, NULL, NULL, true, true, true, 'YYYY_MM_DD', 'on', true, false, false, false, '', true, 'partman.template_public_epochs', NULL, false, true, NULL, false, false);
INSERT INTO partman.part_config VALUES ('public.monthly', 'at', 'native', '1 mon', NULL, 3, 4, 30, 'none', true, '12 months', NULL, false, true, true, 'YYYY_MM', 'on', true, false, false, false, '', true, 'partman.template_public_monthly', NULL, false, true, NULL, false, false);
INSERT INTO partman.part_config VALUES ('public.daily_utc', 'at', 'native', '1 day', NULL, 4, 4, 30, 'none', true, '30 days', NULL, true, true, true, 'YYYY_MM_DD', 'on', true, false, false, false, '', true, 'partman.template_public_daily_utc', NULL, false, true, NULL, false, false);
