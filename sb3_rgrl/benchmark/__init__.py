"""
Measurements of RGRL. ``python -m sb3_rgrl.benchmark planner`` measures how fast it plans and learns.

- ``planner``: the command, and what it measures;
- ``baselines``: plain versions of the same work, to compare with;
- ``agents``: who is measured;
- ``timing``: fair times on a machine that others use as well;
- ``growth`` and ``processes``: what needs a large buffer, or a process of its own;
- ``figures``: what comes out, as table, file and picture.
"""
