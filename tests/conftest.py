"""What the suite shares: one Ray cluster, one S3 server, one small corpus, a fixed hypothesis profile."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "suite", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("suite")
