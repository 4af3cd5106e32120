"""Payment and personal data: found and masked, encrypted per subject, and destroyed when somebody asks."""
