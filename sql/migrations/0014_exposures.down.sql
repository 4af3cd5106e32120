-- What is remembered of units' first outcomes goes away: afterwards each counts once more where Redis has been rebuilt.
DROP TABLE rule_crossings;
DELETE FROM experiment_journal WHERE kind = 'exposed';
ALTER TABLE experiment_journal DROP CONSTRAINT experiment_journal_kind_check;
ALTER TABLE experiment_journal ADD CONSTRAINT experiment_journal_kind_check
  CHECK (kind IN ('event', 'unit', 'quarantine', 'success', 'error', 'over'));
