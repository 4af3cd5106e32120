-- Takes the function away; the server of this release cannot write holds without it.
DROP FUNCTION ledger_append_folded;
