"""The page of the full study: findings as records, predictions judged, figures and text."""
