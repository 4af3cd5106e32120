"""shieldx: credits, experiments and service discovery for a metered platform."""

__version__ = "0.1.0"
