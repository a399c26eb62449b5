"""HTTP for machines that watch: `/metrics`, `/healthz`, `/readyz`, and the admin listener."""
