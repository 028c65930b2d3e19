"""Where workers find what the script has told a mixin: in variables of their environment."""

REDIS_URL = "MOSEC_INTERNAL_REDIS_URL"
PLASMA_PATH = "MOSEC_INTERNAL_PLASMA_PATH"
