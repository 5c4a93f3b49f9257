"""The engine as a state machine: messages in, messages out, no sockets and no clocks.

``Rim`` is all it knows of the outside. Whoever drives it (``engine.py``) holds one lock around
every call, so nothing here is concurrent.
"""

import os
import signal
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from .arenas import Arenas
from .actors import Actors
from .calls import Call, Worker
from .errors import EngineError, PlacementGroupRemovedError, WorkerCrashedError
from .messages import DRIVER, Run, Spec
from .objects import Objects
from .resources import Pool, bundle_demand, readable
from .scheduler import Request, Scheduler
from .value import Value, error_value, inline, pickled
from .waits import Answer, Asker, Waits
from .wire import Message
from .workers import Workers
