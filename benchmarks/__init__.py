"""The measuring half: config.yaml -> study -> sweep -> guard -> cell -> run -> record -> table -> figures -> report.

Rooms from the ground up: measuring, limit and study, paper, reading, figures, report and experiments, __main__. A room
imports only rooms below it.
"""
