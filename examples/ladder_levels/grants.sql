-- Who may do what with stream_ingest.ladder_levels: after the migrations, and again whenever in doubt.
--
--     psql "$DATABASE_URL" -f grants.sql
--
-- POSTGRES_PARTITION_USER and POSTGRES_USER are read from the environment. Whoever runs it is a superuser, or
-- made the tables and is a member of the partition role.
--
-- PostgreSQL has no GRANT ALTER: to attach or detach partitions is the owner's right, and nobody else can be
-- given it. So the partition role owns the table, and every partition of it.
\set ON_ERROR_STOP on
\getenv partition_user POSTGRES_PARTITION_USER
\getenv stream_user POSTGRES_USER

BEGIN;
SET LOCAL lock_timeout = '2s';  -- ALTER ... OWNER waits for writers, and others would queue behind it

-- The partition role. An owner needs CREATE on the schema, and it makes partitions there.
GRANT USAGE, CREATE ON SCHEMA stream_ingest TO :"partition_user";
SELECT format('ALTER TABLE %s OWNER TO %I', relid, :'partition_user')
FROM pg_partition_tree('stream_ingest.ladder_levels') JOIN pg_class ON oid = relid
WHERE pg_get_userbyid(relowner) <> :'partition_user'
ORDER BY level, relname \gexec
-- What there is to keep, and what was done.
GRANT SELECT ON public.partition_config TO :"partition_user";
GRANT SELECT, INSERT, UPDATE, DELETE ON public.partition_runs TO :"partition_user";

-- The stream writer: INSERT and SELECT on the table, which reaches all partitions, and nothing else.
REVOKE ALL ON SCHEMA stream_ingest FROM :"stream_user";
REVOKE ALL ON stream_ingest.ladder_levels FROM :"stream_user";
GRANT USAGE ON SCHEMA stream_ingest TO :"stream_user";
GRANT INSERT, SELECT ON stream_ingest.ladder_levels TO :"stream_user";
COMMIT;

-- What came of it.
SELECT relid::regclass AS "table", pg_get_userbyid(relowner) AS owner,
       (SELECT count(*) FROM pg_partition_tree(relid) WHERE isleaf) AS partitions,
       (SELECT count(*) FROM pg_partition_tree(relid) AS part JOIN pg_class AS child ON child.oid = part.relid
        WHERE child.relowner <> parent.relowner) AS "of others",
       :'stream_user' AS writer,
       (SELECT string_agg(privilege_type, ', ' ORDER BY privilege_type)
        FROM aclexplode(relacl) WHERE grantee = to_regrole(quote_ident(:'stream_user'))) AS "may"
FROM pg_partition_tree('stream_ingest.ladder_levels') JOIN pg_class AS parent ON oid = relid
WHERE level = 0;
