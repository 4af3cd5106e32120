-- Takes rules away, with their versions, counts and samples; what the chain says of them stays.
DROP TABLE rule_samples, rule_tallies, rule_versions, rules_revision, rules;
