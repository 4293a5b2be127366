"""A superuser's work on a table of somebody else's, done with the rights of its owner."""

from .routine import Routine

EXECUTE = Routine(
    "_partition_execute",
    "relation oid, orders text[]",
    "void",
    """
DECLARE
  o record; statement text;
BEGIN
  SELECT r.oid, r.rolname, r.rolsuper, n.oid AS space, n.nspname, c.relname INTO STRICT o
  FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.oid = relation;
  IF o.rolsuper OR NOT (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = current_user) THEN
    FOREACH statement IN ARRAY orders LOOP
      EXECUTE statement;
    END LOOP;
    RETURN;
  ELSIF NOT has_schema_privilege(o.oid, o.space, 'USAGE')
      OR NOT has_schema_privilege(o.oid, o.space, 'CREATE') THEN
    RAISE EXCEPTION '% owns %.% and may not create there: GRANT USAGE, CREATE ON SCHEMA % TO %',
      quote_ident(o.rolname), quote_ident(o.nspname), quote_ident(o.relname), quote_ident(o.nspname),
      quote_ident(o.rolname) USING ERRCODE = 'insufficient_privilege',
      HINT = 'A superuser works on it as its owner, whose functions its indexes and CHECKs call.';
  END IF;
  -- SET ROLE would be no wall, as those functions could go back to the superuser. Made anew each time: it is
  -- the owner's, and so his to change.
  CREATE FUNCTION pg_temp._partition_as_owner(orders text[]) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS '
DECLARE
  statement text;
BEGIN
  FOREACH statement IN ARRAY orders LOOP
    EXECUTE statement;
  END LOOP;
  -- What the owner put off until COMMIT would run as the superuser.
  SET CONSTRAINTS ALL IMMEDIATE;
END';
  EXECUTE format('ALTER FUNCTION pg_temp._partition_as_owner(text[]) OWNER TO %I', o.rolname);
  SET CONSTRAINTS ALL IMMEDIATE;
  EXECUTE 'SELECT pg_temp._partition_as_owner($1)' USING orders;
  DROP FUNCTION pg_temp._partition_as_owner(text[]);
END
""",
    "send statements; those of a superuser with the rights of a table's owner",
    volatile=True,
)

ROUTINES = (EXECUTE,)
