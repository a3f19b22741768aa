"""
Measurements of RGRL.

``python -m sb3_rgrl.benchmark planner`` measures how fast it plans and learns:

- ``planner``: the command, and what it measures;
- ``baselines``: plain versions of the same work, to compare with;
- ``agents``: who is measured;
- ``timing``: fair times on a machine that others use as well;
- ``growth`` and ``processes``: what needs a large buffer, or a process of its own;
- ``figures``: what comes out, as table, file and picture.

``python -m sb3_rgrl.benchmark run`` runs it and its peers side by side (docs/benchmark.md):

- ``run``: the command;
- ``grid``: which runs are wanted, which are there, and how the others are made;
- ``peers`` and ``simple``: who takes part, with which hyperparameters;
- ``protocol``: how they are evaluated;
- ``one_run``: the process of one run; ``executors``: where it is started;
- ``results``: its files; ``origin``: the versions and the machine in them;
- ``progress``, ``names``: what people see and type.

``python -m sb3_rgrl.benchmark report`` and ``export`` make something of its results:

- ``report``, ``export``: the commands;
- ``curves``: runs as learning curves; ``references``: what a return is worth;
- ``statistics``: estimates with intervals; ``summaries``: what the runs amount to;
- ``tables``, ``pictures``, ``looks`` and ``web``: how that is shown.
"""
