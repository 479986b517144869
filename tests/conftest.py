"""The pytester fixture, for the stories; nothing else is shared between the rooms."""

pytest_plugins = ["pytester"]
