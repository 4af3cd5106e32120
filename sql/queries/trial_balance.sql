-- The balance of every kind of account at one instant; together they are zero. No params.
-- System accounts come from the chain, tenants and holds from what it folds to: two ways that must agree.
WITH flows AS (
  SELECT type, sum(amount)::numeric AS total,
         sum(amount) FILTER (WHERE type = 'transfer' AND convert_from(entry, 'UTF8') LIKE '%"credit":"system:clearing"%')::numeric AS given
  FROM audit_chain
  WHERE type IN ('topup', 'consume', 'commit', 'refund', 'transfer', 'settle_out', 'settle_in')
  GROUP BY type
), flow AS (
  SELECT coalesce(sum(total) FILTER (WHERE type = 'topup'), 0) AS topup,
         coalesce(sum(total) FILTER (WHERE type IN ('consume', 'commit')), 0) AS spent,
         coalesce(sum(total) FILTER (WHERE type = 'refund'), 0) AS refund,
         coalesce(sum(2 * coalesce(given, 0) - total) FILTER (WHERE type = 'transfer'), 0)
           + coalesce(sum(total) FILTER (WHERE type = 'settle_out'), 0)
           - coalesce(sum(total) FILTER (WHERE type = 'settle_in'), 0) AS clearing
  FROM flows
)
SELECT 'system:funding' AS account, -topup FROM flow
UNION ALL SELECT 'system:revenue', spent - refund FROM flow
UNION ALL SELECT 'system:clearing', clearing FROM flow
UNION ALL SELECT 'system:expired', 0
UNION ALL SELECT 'system:adjustment', 0
UNION ALL SELECT 'tenants', coalesce(sum(balance), 0) FROM credit_accounts
