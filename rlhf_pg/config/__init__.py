"""The configuration tree, without torch: read, override, check, print."""

from rlhf_pg.config.load import config_from_dict, load_config
from rlhf_pg.config.tree import Config

__all__ = ["Config", "config_from_dict", "load_config"]
