"""Model cards from results files, and pushing models with them to the Hub."""

from acoustic_scenes.packages import check_packages, quieten_libraries


quieten_libraries()
check_packages({"matplotlib": "matplotlib", "yaml": "pyyaml"})
