"""Who may call: API keys, roles, the limits of tenants and services, and rate limits."""
