"""A third kind of job, as somebody would add it; `test_added_job` lays it beside those there are and runs it."""
