"""Circuits: the small part of a weight-sparse model that does a task, cut out, checked, run by itself and looked at.

Needs the `circuits` extra; `import sparsekern` alone does not import this package.
"""

from .about import About, Context, Edge, Link, Node, Prompt
from .calibrate import Calibration, calibrate
from .checks import Checks, check, untrained_like
from .circuit import Circuit, CircuitError
from .describe import describe
from .hooks import intervene, record
from .masks import MaskSettings
from .nodes import EdgeGroup, Layout, edges_between, locations, mean_activations, with_nodes, without_edges
from .prune import TARGET, Cut, Found, Subject, Trial, find_cut
from .released import load_viz_data, save_viz_data
from .tasks import TASKS, Pairs, Task, TaskError, accuracy, build_task, margins, task_loss

__all__ = [
    "TARGET",
    "TASKS",
    "About",
    "Calibration",
    "Checks",
    "Circuit",
    "CircuitError",
    "Context",
    "Cut",
    "Edge",
    "EdgeGroup",
    "Found",
    "Layout",
    "Link",
    "MaskSettings",
    "Node",
    "Pairs",
    "Prompt",
    "Subject",
    "Task",
    "TaskError",
    "Trial",
    "accuracy",
    "build_task",
    "calibrate",
    "check",
    "describe",
    "edges_between",
    "find_cut",
    "intervene",
    "load_viz_data",
    "locations",
    "margins",
    "mean_activations",
    "record",
    "save_viz_data",
    "task_loss",
    "untrained_like",
    "with_nodes",
    "without_edges",
]
