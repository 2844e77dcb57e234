"""Who may do what: tokens, certificates, and what was refused."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class AccessMetrics:
    """Tokens, certificates, and what the policy and its quotas refuse."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._auth_failures = Counter(
            "enclaved_auth_failures",
            "Calls refused since they had no valid token or key, by listener.",
            ("listener",),
            registry=registry,
        )
        self._tokens = Gauge("enclaved_tokens", "Tokens that are valid.", registry=registry)
        self._certificate_end = Gauge(
            "enclaved_tls_certificate_not_after_timestamp_seconds",
            "When the certificate of the listeners expires; 0 without one.",
            registry=registry,
        )
        self._certificate_reloads = Counter(
            "enclaved_tls_reloads", "Reloads of a changed certificate by outcome.", ("outcome",), registry=registry
        )
        self._policy_refusals = Counter(
            "enclaved_policy_refusals", "Sandboxes that the policy did not grant, by rule", ["rule"], registry=registry
        )
        self._quota_refusals = Counter(
            "enclaved_quota_refusals",
            "Sandboxes and executions beyond what one identity may have, by limit",
            ["limit"],
            registry=registry,
        )
        for listener in ("unix", "tcp", "http", "metrics"):
            self._auth_failures.labels(listener)
        for outcome in ("ok", "error"):
            self._certificate_reloads.labels(outcome)

    def auth_failed(self, listener: str) -> None:
        """Counts one call without a valid token or key at a listener (unix, tcp, http or metrics)."""
        self._auth_failures.labels(listener).inc()

    def tokens_valid(self, count: int) -> None:
        """Says how many tokens are valid."""
        self._tokens.set(count)

    def certificate_loaded(self, not_after_s: float) -> None:
        """Says when the certificate in use expires, in seconds since the epoch."""
        self._certificate_end.set(not_after_s)

    def certificate_reloaded(self, successful: bool) -> None:
        """Counts one look at a changed certificate."""
        self._certificate_reloads.labels("ok" if successful else "error").inc()

    def policy_refused(self, rule: str) -> None:
        """Counts one sandbox that the policy did not grant."""
        self._policy_refusals.labels(rule).inc()

    def quota_refused(self, limit: str) -> None:
        """Counts one sandbox or execution that was more than somebody may have."""
        self._quota_refusals.labels(limit).inc()
