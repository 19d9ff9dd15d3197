"""From audits to tables, figures and one page."""
