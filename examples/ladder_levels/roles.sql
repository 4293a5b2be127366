-- The two roles, once for each server, by who migrates, with CREATEROLE, or by a superuser:
--
--     psql "$DATABASE_URL" -f roles.sql
--
-- POSTGRES_PARTITION_USER, POSTGRES_PARTITION_PASSWORD, POSTGRES_USER and POSTGRES_PASSWORD are read from the
-- environment. A role that is there already is left as it is. (The passwords reach a server log that keeps
-- DDL: there, leave them out here and set them with \password.)
\set ON_ERROR_STOP on
\getenv partition_user POSTGRES_PARTITION_USER
\getenv partition_password POSTGRES_PARTITION_PASSWORD
\getenv stream_user POSTGRES_USER
\getenv stream_password POSTGRES_PASSWORD

SELECT format('CREATE ROLE %I LOGIN PASSWORD %L', name, password)
FROM (VALUES (:'partition_user', :'partition_password'), (:'stream_user', :'stream_password'))
     AS wanted (name, password)
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec

-- Whoever migrates is a member of the role that owns the table; a superuser need not be.
SELECT format('GRANT %I TO %I', :'partition_user', rolname)
FROM pg_roles WHERE rolname = current_user AND NOT rolsuper \gexec
