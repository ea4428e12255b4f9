"""What every integration test needs."""

from isolation import environment_is_restored, one_thread  # noqa: F401  (fixtures of every test here)
