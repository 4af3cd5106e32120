"""Shadow: experiments, safe deployment, canaries."""
