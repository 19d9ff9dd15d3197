"""PRISM, the audit: what is measured, probes, statistics, verdicts and the report."""
