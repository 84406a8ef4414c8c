"""Event files that TensorBoard reads in the order in which they were written."""

import pytest
from tensorboard.summary.writer import event_file_writer


@pytest.fixture(scope="session", autouse=True)
def numbers_of_equal_length():
    """It reads the files of one second in the order of their numbers as text: 9 after 10."""
    event_file_writer._global_uid = event_file_writer.AtomicCounter(1000)
