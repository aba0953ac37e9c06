"""Model cards from results files, and pushing models with them to the Hub."""

import dataset_script  # checks its packages
from acoustic_scenes.packages import check_packages, quieten_libraries


quieten_libraries()
check_packages({"matplotlib": "matplotlib", "yaml": "pyyaml"})
