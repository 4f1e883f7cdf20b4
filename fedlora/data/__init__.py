"""Where examples come from, how they are spread over clients, and how texts become tokens."""

from fedlora.data.base import DataSet, Examples, Source, Task
from fedlora.data.load import load_data
from fedlora.data.sources import DATA

__all__ = ["DATA", "DataSet", "Examples", "Source", "Task", "load_data"]
