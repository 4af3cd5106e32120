"""Dashboards for Grafana, written in Python and committed as the JSON that Grafana reads; pictures of them."""
