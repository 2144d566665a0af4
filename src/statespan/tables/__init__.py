"""Files of columns in, sequences out; answers in, files out. pandas is imported when the first file is read."""

from statespan.tables.calendar import Calendar
from statespan.tables.data import Columns, Data, read, read_ahead, read_inputs, read_words
from statespan.tables.files import read_table
from statespan.tables.write import text_of, write

__all__ = [
    "Calendar",
    "Columns",
    "Data",
    "read",
    "read_ahead",
    "read_inputs",
    "read_table",
    "read_words",
    "text_of",
    "write",
]
