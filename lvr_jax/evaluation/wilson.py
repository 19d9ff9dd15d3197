"""Wilson's score interval of a proportion."""


def limits(successes, n, level: float = 0.95):
    """(low, high) of shares successes / n, floats or arrays of one shape."""
    # Late: with pandas it takes as long to import as all else together.
    from statsmodels.stats.proportion import proportion_confint

    return proportion_confint(successes, n, alpha=1 - level, method="wilson")
