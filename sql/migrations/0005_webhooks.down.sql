-- Takes webhooks away, with what has not been delivered.
DROP TABLE webhook_deliveries, webhook_endpoints;
