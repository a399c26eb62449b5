"""From the config to the store: by itself, for commands that need not wait for gRPC's import."""

from extauthz.config import Config
from extauthz.server.data_dir import DataDir


def store_url(config: Config) -> str:
    """The configured store, else the embedded one's socket."""
    return config.store.url or f"unix://{DataDir(config.data_dir).store_socket}"
