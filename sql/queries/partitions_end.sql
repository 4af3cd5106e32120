-- The end of the last quarter for which entries and reservations both have a partition. No params.
SELECT least((SELECT max(ends_at) FROM partitions_of('audit_entries')),
             (SELECT max(ends_at) FROM partitions_of('credit_reservations')))
