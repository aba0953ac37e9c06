"""The runs behind the tables of the report."""
