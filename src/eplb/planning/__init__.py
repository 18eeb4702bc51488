"""From loads to a plan: the windows to plan for, the planner, and figures of what it gives."""
