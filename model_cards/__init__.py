"""Model cards from results files, and pushing models with them to the Hub."""
