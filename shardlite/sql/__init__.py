"""SQL analysis without a database: a text becomes a template, a template and its parameters a plan."""
