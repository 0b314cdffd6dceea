"""The measuring half: config -> study -> sweep -> guard -> measurement -> run -> record -> table -> figures -> report.

Rooms from the ground up: measuring, roofline, config, plugins, study, plan, sweep, analysis, figures, report and
experiments, __main__. A room imports only rooms below it.
"""
