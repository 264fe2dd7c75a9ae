"""The real scheduler, planner, policies and store on simulated GPUs and a manual clock."""
