-- Takes the function away; the server of this release cannot write without it.
DROP FUNCTION ledger_append;
