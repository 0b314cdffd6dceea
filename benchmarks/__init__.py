"""The measuring half of the project: config -> study -> sweep -> guard -> cell -> record -> table -> figures."""
