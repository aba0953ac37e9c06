"""Model cards from results files, and pushing models with them to the Hub."""

import dataset_script
from acoustic_scenes.packages import check_packages, quieten_libraries


quieten_libraries()
check_packages({"matplotlib": "matplotlib", "yaml": "pyyaml"})
