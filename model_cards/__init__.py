"""Model cards from results files, and pushing models with them to the Hub."""

from dataset_script.packages import require_packages


require_packages({"matplotlib": "matplotlib", "yaml": "pyyaml"})
