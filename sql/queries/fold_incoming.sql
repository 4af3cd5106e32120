-- What prepared transfers will bring. Params: $1 tenants text[], $2 changes bigint[], one row a tenant.
UPDATE credit_accounts a SET incoming = a.incoming + u.change
FROM unnest($1::text[], $2::bigint[]) AS u (tenant_id, change)
WHERE a.tenant_id = u.tenant_id
