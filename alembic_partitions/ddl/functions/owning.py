"""A superuser's work on a table of somebody else's, done with the rights of its owner."""

from .routine import Routine

ACT_AS_OWNER = Routine(
    "_partition_act_as_owner",
    "relation oid",
    "text",
    """
DECLARE
  o record; before text := current_setting('role');
BEGIN
  SELECT r.oid, r.rolname, r.rolsuper, n.oid AS space, n.nspname, c.relname INTO STRICT o
  FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.oid = relation;
  IF o.rolsuper OR NOT (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = current_user) THEN
    RETURN NULL;
  ELSIF NOT has_schema_privilege(o.oid, o.space, 'USAGE')
      OR NOT has_schema_privilege(o.oid, o.space, 'CREATE') THEN
    RAISE EXCEPTION '% owns %.% and may not create there: GRANT USAGE, CREATE ON SCHEMA % TO %',
      quote_ident(o.rolname), quote_ident(o.nspname), quote_ident(o.relname), quote_ident(o.nspname),
      quote_ident(o.rolname) USING ERRCODE = 'insufficient_privilege',
      HINT = 'A superuser works on it as its owner, whose functions its indexes call.';
  END IF;
  PERFORM set_config('role', o.rolname, true);
  RETURN before;
END
""",
    "have a superuser act as the owner of a table; returns the role to go back to, if another",
    volatile=True,
)

ROUTINES = (ACT_AS_OWNER,)
