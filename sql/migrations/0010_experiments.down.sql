-- Takes all experiments away with their counters; what the chain says of them stays.
DROP TABLE experiment_weights, experiment_journal, experiment_counters, shadow_revision, experiments;
DROP FUNCTION experiments_changed;
